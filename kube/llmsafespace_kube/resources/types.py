"""The custom resources `llmsafespace.dev/v1`. CRDs, admission, operator and gateway use these types.

Field names are camelCase in JSON. Only the operator writes a status. Docstrings become the descriptions in
the CRDs, and each `Meta` becomes a description or validation: run `make crds docs` after a change.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmsafespace_kube.resources.kubernetes import Condition, Metadata, Object
from llmsafespace_kube.resources.quantities import Quantity, WithQuantities
from llmsafespace_protocol import limits

Name = Annotated[
    str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=limits.MAX_NAME)
]
RuntimeName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9+_-]*[0-9.]*(:[A-Za-z0-9_.+-]+)?$",
        max_length=128,
        description="A language and its version, such as python:3.11.",
    ),
]
SecurityLevel = Literal["standard", "high", "custom"]
Port = Annotated[int, Meta(ge=1, le=65535)]
PackageName = Annotated[str, Meta(min_length=1, max_length=limits.MAX_PACKAGE_NAME)]
Domain = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.MAX_DOMAIN,
        description="A host name, an IP address, or `*.` and a domain for all of its subdomains.",
    ),
]
Path = Annotated[str, Meta(min_length=1, max_length=255)]
Cidr = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", max_length=64)]


# -- common -------------------------------------------------------------------------------------------


class NamedObject(Object):
    """A reference to another object by name and namespace."""

    name: Name
    namespace: Name


class ProfileRef(Object):
    """A reference to a SandboxProfile. The default namespace is that of the referring object."""

    name: Name
    namespace: Name | None = None


class Resources(WithQuantities):
    """The resources that a sandbox may use."""

    cpu: Quantity = "500m"
    memory: Quantity = "512Mi"
    ephemeral_storage: Quantity = "1Gi"
    cpu_pinning: bool = False


class PoolResources(WithQuantities):
    """The resources of each sandbox of a pool. The defaults are larger than those of a Sandbox."""

    cpu: Quantity = "1"
    memory: Quantity = "1Gi"
    ephemeral_storage: Quantity = "1Gi"


class SeccompProfile(Object):
    """A seccomp profile. Type Localhost requires `localhostProfile`, the path of a file on the node."""

    type: Literal["RuntimeDefault", "Localhost"] = "RuntimeDefault"
    localhost_profile: Annotated[str, Meta(max_length=255)] | None = None


# -- Sandbox -------------------------------------------------------------------------------------------


class PortRule(Object):
    """A port that the sandbox may reach."""

    port: Port
    protocol: Literal["TCP"] = "TCP"


class EgressRule(Object):
    """A destination that the sandbox may reach through the egress proxy. Without ports: 80 and 443."""

    domain: Domain
    ports: Annotated[list[PortRule], Meta(max_length=limits.MAX_EGRESS_PORTS)] = []


class NetworkAccess(Object):
    """The destinations that the sandbox may reach. Only the gateway and the operator can reach it."""

    egress: Annotated[list[EgressRule], Meta(max_length=limits.MAX_EGRESS_RULES)] = []
    ingress: Literal[False] = False


class Filesystem(Object):
    """The root filesystem is read-only. `writablePaths` are limited in size and empty at start."""

    read_only_root: bool = True
    writable_paths: Annotated[list[Path], Meta(max_length=16)] = msgspec.field(
        default_factory=lambda: ["/tmp", "/workspace"]  # noqa: S108
    )


class Storage(WithQuantities):
    """A persistent volume for the workspace. Not supported yet: `persistent: true` is refused."""

    persistent: bool = False
    volume_size: Quantity = "5Gi"


class SecurityContext(Object):
    """The user and group of the sandbox's processes. Root is refused."""

    run_as_user: Annotated[int, Meta(ge=1, le=65534)] = 1000
    run_as_group: Annotated[int, Meta(ge=1, le=65534)] = 1000
    run_as_non_root: Literal[True] = True
    seccomp_profile: SeccompProfile = msgspec.field(default_factory=SeccompProfile)


class WarmPodClaimed(Object):
    """The WarmPod that the gateway claimed for this Sandbox, and the id of the claim."""

    name: Name
    namespace: Name
    claim_id: Annotated[str, Meta(min_length=1, max_length=128)]


class SandboxSpec(Object):
    """The sandbox that is requested. It cannot be changed."""

    runtime: RuntimeName
    security_level: SecurityLevel = "standard"
    timeout: Annotated[
        int,
        Meta(ge=1, le=limits.MAX_DURATION, description="Maximum duration of one execution, in seconds."),
    ] = 300
    resources: Resources = msgspec.field(default_factory=Resources)
    network_access: NetworkAccess = msgspec.field(default_factory=NetworkAccess)
    filesystem: Filesystem = msgspec.field(default_factory=Filesystem)
    storage: Storage = msgspec.field(default_factory=Storage)
    security_context: SecurityContext = msgspec.field(default_factory=SecurityContext)
    profile_ref: ProfileRef | None = None
    user: (
        Annotated[
            str, Meta(max_length=253, description="The owner. Only users with the verb `assign` may set it.")
        ]
        | None
    ) = None
    use_warm_pool: Annotated[
        bool, Meta(description="False: always start a new pod, never claim a warm pod.")
    ] = True
    warm_pool: (
        Annotated[
            Name,
            Meta(
                description="The WarmPool to claim from, with what it preloads. Without it, only pools that "
                "preload nothing or are published may serve."
            ),
        ]
        | None
    ) = None
    idle_timeout: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=limits.MAX_DURATION,
                description="Seconds without executions and connections after which it ends.",
            ),
        ]
        | None
    ) = None
    max_lifetime: Annotated[
        int, Meta(ge=1, le=limits.MAX_DURATION, description="Maximum lifetime in seconds.")
    ] = 86400
    warm_pod: WarmPodClaimed | None = None


class ResourceUsage(Object):
    """The sandbox's usage, as quantities. The operator does not set it: use the gateway's API."""

    cpu_usage: str = ""
    memory_usage: str = ""


class SandboxStatus(Object):
    """The state of a Sandbox. `end`: why it ended (terminated, expired, oom, lost, failed)."""

    phase: Literal["Pending", "Creating", "Running", "Terminating", "Terminated", "Failed"] = "Pending"
    conditions: list[Condition] = []
    sandbox_id: Annotated[str, Meta(description="The sandbox's id in the gateway's APIs.")] = ""
    runtime: Annotated[str, Meta(description="The runtime in use, such as python:3.11.")] = ""
    start_kind: Literal["", "warm", "cold"] = ""
    start_reason: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    node_name: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    end: str = ""
    message: str = ""
    endpoint: str = ""
    resources: ResourceUsage | None = None
    warm_pod_ref: NamedObject | None = None


class Sandbox(Object):
    """An isolated Jupyter kernel for one user."""

    metadata: Metadata
    spec: SandboxSpec
    status: SandboxStatus = msgspec.field(default_factory=SandboxStatus)


# -- SandboxProfile ------------------------------------------------------------------------------------


class NetworkRule(Object):
    """A destination. A domain is reached through the egress proxy, a cidr directly."""

    domain: Domain | None = None
    cidr: Cidr | None = None
    ports: Annotated[list[PortRule], Meta(max_length=limits.MAX_EGRESS_PORTS)] = []


class NetworkPolicyRules(Object):
    """Rules of one direction. Only egress is supported: no other pod can reach a sandbox."""

    type: Literal["egress"] = "egress"
    rules: Annotated[list[NetworkRule], Meta(max_length=64)] = []


class FilesystemConfig(Object):
    """Paths in addition to the runtime's. A read-only path has an effect only below a writable one."""

    read_only_paths: Annotated[list[Path], Meta(max_length=16)] = []
    writable_paths: Annotated[list[Path], Meta(max_length=16)] = []


class SandboxProfileSpec(Object):
    """The permissions and the isolation of sandboxes with this profile."""

    language: str = ""
    security_level: SecurityLevel = "standard"
    seccomp_profile: Annotated[
        str, Meta(max_length=255, description="RuntimeDefault, or a file in the kubelet's seccomp folder.")
    ] = ""
    runtime_class_name: str | None = None
    network_policies: Annotated[list[NetworkPolicyRules], Meta(max_length=8)] = []
    pre_installed_packages: Annotated[list[str], Meta(max_length=256)] = []
    resource_defaults: Resources | None = None
    filesystem_config: FilesystemConfig | None = None


class SandboxProfileStatus(Object):
    """The state of a profile: whether it is valid and its RuntimeClass exists."""

    conditions: list[Condition] = []


class SandboxProfile(Object):
    """The isolation and the network rules of a class of sandboxes."""

    metadata: Metadata
    spec: SandboxProfileSpec = msgspec.field(default_factory=SandboxProfileSpec)
    status: SandboxProfileStatus = msgspec.field(default_factory=SandboxProfileStatus)


# -- RuntimeEnvironment --------------------------------------------------------------------------------


class ResourceRequirements(WithQuantities):
    """The minimum and the recommended resources for sandboxes of this runtime."""

    min_cpu: Quantity | None = None
    min_memory: Quantity | None = None
    recommended_cpu: Quantity | None = None
    recommended_memory: Quantity | None = None


class RuntimeEnvironmentSpec(Object):
    """A container image that sandboxes may run, and its content."""

    image: Annotated[str, Meta(min_length=1, max_length=512)]
    language: Annotated[str, Meta(min_length=1, max_length=64)]
    version: str = ""
    tags: list[str] = []
    pre_installed_packages: list[str] = []
    package_manager: str = ""
    security_features: list[str] = []
    resource_requirements: ResourceRequirements | None = None


class RuntimeEnvironmentStatus(Object):
    """The state of a runtime: whether sandboxes can use it."""

    available: bool = False
    last_validated: datetime | None = None
    conditions: list[Condition] = []


class RuntimeEnvironment(Object):
    """A runtime. Sandboxes and WarmPools refer to it by language and version, such as `python:3.11`."""

    metadata: Metadata
    spec: RuntimeEnvironmentSpec
    status: RuntimeEnvironmentStatus = msgspec.field(default_factory=RuntimeEnvironmentStatus)


# -- WarmPool ------------------------------------------------------------------------------------------


class PreloadScript(Object):
    """Python code that runs once in each warm sandbox, before it is claimed."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    content: Annotated[str, Meta(max_length=limits.MAX_PRELOAD_SCRIPT)]


class AutoScaling(Object):
    """Grow up to maxSize with the rate of claims, and if more than targetUtilization percent are claimed."""

    enabled: bool = False
    target_utilization: Annotated[int, Meta(ge=1, le=100)] = 80
    scale_down_delay: Annotated[int, Meta(ge=0, le=limits.MAX_SCALE_DOWN_DELAY)] = 300


class WarmPoolSpec(Object):
    """A pool of sandboxes that are started in advance.

    `maxSize: 0` means no limit. An unclaimed sandbox is replaced after `ttl` seconds.
    """

    runtime: RuntimeName
    min_size: Annotated[int, Meta(ge=0, le=limits.MAX_POOL_SIZE)] = 1
    max_size: Annotated[int, Meta(ge=0, le=limits.MAX_POOL_SIZE)] = 0
    security_level: SecurityLevel = "standard"
    ttl: Annotated[int, Meta(ge=0, le=limits.MAX_DURATION)] = 3600
    resources: PoolResources = msgspec.field(default_factory=PoolResources)
    profile_ref: ProfileRef | None = None
    preload_packages: Annotated[list[PackageName], Meta(max_length=limits.MAX_PRELOAD_PACKAGES)] = []
    preload_scripts: Annotated[list[PreloadScript], Meta(max_length=limits.MAX_PRELOAD_SCRIPTS)] = []
    auto_scaling: AutoScaling = msgspec.field(default_factory=AutoScaling)
    update_strategy: Literal["OnReplenish", "Recreate"] = "OnReplenish"
    allowed_namespaces: Annotated[
        list[str],
        Meta(max_length=256, description="Namespaces whose Sandboxes may claim from this pool; `*`: all."),
    ] = msgspec.field(default_factory=lambda: ["*"])
    published: Annotated[
        bool,
        Meta(
            description="Whether preloaded code may run in Sandboxes that do not name this pool (`warmPool`)."
        ),
    ] = True
    owner: (
        Annotated[str, Meta(max_length=253, description="The user who created it through a gateway's API.")]
        | None
    ) = None


class WarmPoolStatus(Object):
    """The state of a pool: the number of WarmPods that are available, assigned (claimed) and pending."""

    available_pods: int = 0
    assigned_pods: int = 0
    pending_pods: int = 0
    replicas: Annotated[
        int, Meta(description="Available plus pending WarmPods, for the scale subresource.")
    ] = 0
    selector: str = ""
    last_scale_time: datetime | None = None
    observed_generation: int = 0
    conditions: list[Condition] = []


class WarmPool(Object):
    """A pool of sandboxes that are started in advance."""

    metadata: Metadata
    spec: WarmPoolSpec
    status: WarmPoolStatus = msgspec.field(default_factory=WarmPoolStatus)


# -- WarmPod -------------------------------------------------------------------------------------------


class WarmPodClaim(Object):
    """The claim of a pod: written once, by JSON-Patch, and never changed."""

    claim_id: Annotated[str, Meta(min_length=1, max_length=128, description="The sandbox's public id.")]
    sandbox: NamedObject
    time: datetime


class WarmPodSpec(Object):
    """One pod of a pool. Only `claim` decides which Sandbox has it."""

    pool_ref: NamedObject
    creation_timestamp: datetime | None = None
    last_heartbeat: datetime | None = None
    claim: WarmPodClaim | None = None


class WarmPodStatus(Object):
    """The state of a WarmPod, and the properties with which its pod was created."""

    phase: Literal["Pending", "Ready", "Assigned", "Draining", "Terminating"] = "Pending"
    pod_name: str = ""
    pod_namespace: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    node_name: str = ""
    assigned_to: NamedObject | None = None
    assigned_at: datetime | None = None
    runtime: Annotated[str, Meta(description="The name of the RuntimeEnvironment.")] = ""
    security_level: str = ""
    resources: PoolResources | None = None
    profile_ref: ProfileRef | None = None
    revision: Annotated[str, Meta(description="The revision of the pool when the pod was created.")] = ""
    code: Annotated[
        Literal["", "none", "own", "published"],
        Meta(description="Whose code was preloaded: none, the pool owner's own, or published code."),
    ] = ""
    message: str = ""


class WarmPod(Object):
    """A pod with a parked kernel that waits to be claimed. The pod has the name of the WarmPod."""

    metadata: Metadata
    spec: WarmPodSpec
    status: WarmPodStatus = msgspec.field(default_factory=WarmPodStatus)
