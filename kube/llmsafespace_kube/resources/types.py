"""The custom resources `llmsafespace.dev/v1`, defined once: CRDs, admission, operator and gateway use these.

Field names are camelCase in JSON. Every field of a status is the operator's. What a docstring or a Meta says
becomes the CRD's description and validation.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmsafespace_kube.resources.kubernetes import Condition, Metadata, Object
from llmsafespace_kube.resources.quantities import Quantity, WithQuantities

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)]
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
Domain = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=253,
        description="A host name, an address, or `*.` and a name for every name below it.",
    ),
]
Path = Annotated[str, Meta(min_length=1, max_length=255)]
Cidr = Annotated[str, Meta(pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", max_length=64)]


# -- common -------------------------------------------------------------------------------------------


class NamedObject(Object):
    """Name and namespace of another object."""

    name: Name
    namespace: Name


class ProfileRef(Object):
    """A SandboxProfile; without a namespace the one of the object that refers to it."""

    name: Name
    namespace: Name | None = None


class Resources(WithQuantities):
    """What a sandbox may use."""

    cpu: Quantity = "500m"
    memory: Quantity = "512Mi"
    ephemeral_storage: Quantity = "1Gi"
    cpu_pinning: bool = False


class PoolResources(WithQuantities):
    """What each sandbox of a pool may use; the defaults fit the default requests of Sandboxes, and more."""

    cpu: Quantity = "1"
    memory: Quantity = "1Gi"
    ephemeral_storage: Quantity = "1Gi"


class SeccompProfile(Object):
    """A seccomp profile; `localhostProfile` names a file on the node and belongs to type Localhost."""

    type: Literal["RuntimeDefault", "Localhost"] = "RuntimeDefault"
    localhost_profile: Annotated[str, Meta(max_length=255)] | None = None


# -- Sandbox -------------------------------------------------------------------------------------------


class PortRule(Object):
    """A port that may be reached."""

    port: Port
    protocol: Literal["TCP"] = "TCP"


class EgressRule(Object):
    """A destination that may be reached through the egress proxy; no ports means 80 and 443."""

    domain: Domain
    ports: Annotated[list[PortRule], Meta(max_length=32)] = []


class NetworkAccess(Object):
    """What the sandbox may reach. Nothing reaches it but the gateway and the operator."""

    egress: Annotated[list[EgressRule], Meta(max_length=128)] = []
    ingress: Literal[False] = False


class Filesystem(Object):
    """The root is read-only but for `writablePaths`, which are size-limited and empty at start."""

    read_only_root: bool = True
    writable_paths: Annotated[list[Path], Meta(max_length=16)] = msgspec.field(
        default_factory=lambda: ["/tmp", "/workspace"]  # noqa: S108
    )


class Storage(WithQuantities):
    """A persistent volume for the workspace (not yet served: `persistent` true is refused)."""

    persistent: bool = False
    volume_size: Quantity = "5Gi"


class SecurityContext(Object):
    """Who the sandbox's processes are; root is refused."""

    run_as_user: Annotated[int, Meta(ge=1, le=65534)] = 1000
    run_as_group: Annotated[int, Meta(ge=1, le=65534)] = 1000
    run_as_non_root: Literal[True] = True
    seccomp_profile: SeccompProfile = msgspec.field(default_factory=SeccompProfile)


class WarmPodClaimed(Object):
    """The WarmPod that the gateway claimed for this Sandbox, and under which claim."""

    name: Name
    namespace: Name
    claim_id: Annotated[str, Meta(min_length=1, max_length=128)]


class SandboxSpec(Object):
    """A sandbox that somebody wants. Immutable."""

    runtime: RuntimeName
    security_level: SecurityLevel = "standard"
    timeout: Annotated[int, Meta(ge=1, le=86400, description="Seconds that one execution may run.")] = 300
    resources: Resources = msgspec.field(default_factory=Resources)
    network_access: NetworkAccess = msgspec.field(default_factory=NetworkAccess)
    filesystem: Filesystem = msgspec.field(default_factory=Filesystem)
    storage: Storage = msgspec.field(default_factory=Storage)
    security_context: SecurityContext = msgspec.field(default_factory=SecurityContext)
    profile_ref: ProfileRef | None = None
    user: (
        Annotated[
            str, Meta(max_length=253, description="Whose it is: for those who may `assign` sandboxes only.")
        ]
        | None
    ) = None
    use_warm_pool: Annotated[bool, Meta(description="False starts a pod of its own.")] = True
    warm_pool: (
        Annotated[
            Name,
            Meta(
                description="The WarmPool that it is to be of, with what that preloads. Without it only "
                "pools that preload nothing, or are published, serve."
            ),
        ]
        | None
    ) = None
    idle_timeout: (
        Annotated[
            int, Meta(ge=1, description="Seconds with nothing running and nobody connected, then it ends.")
        ]
        | None
    ) = None
    max_lifetime: Annotated[
        int, Meta(ge=1, le=2_592_000, description="Seconds, then it ends in any case.")
    ] = 86400
    warm_pod: WarmPodClaimed | None = None


class ResourceUsage(Object):
    """What the sandbox uses, as quantities. The operator leaves it out: ask the gateway's API."""

    cpu_usage: str = ""
    memory_usage: str = ""


class SandboxStatus(Object):
    """How a Sandbox stands. `end` (ok words: terminated, expired, oom, lost, failed) says why it ended."""

    phase: Literal["Pending", "Creating", "Running", "Terminating", "Terminated", "Failed"] = "Pending"
    conditions: list[Condition] = []
    sandbox_id: Annotated[str, Meta(description="Its id in the gateway's APIs.")] = ""
    runtime: Annotated[str, Meta(description="The runtime that serves, such as python:3.11.")] = ""
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
    """A destination: a domain goes through the egress proxy, a cidr past it."""

    domain: Domain | None = None
    cidr: Cidr | None = None
    ports: Annotated[list[PortRule], Meta(max_length=32)] = []


class NetworkPolicyRules(Object):
    """Rules of one direction; only egress is served, as nothing but the gateway reaches a sandbox."""

    type: Literal["egress"] = "egress"
    rules: Annotated[list[NetworkRule], Meta(max_length=64)] = []


class FilesystemConfig(Object):
    """Paths beside those of the runtime; read-only ones must lie below a writable one to mean anything."""

    read_only_paths: Annotated[list[Path], Meta(max_length=16)] = []
    writable_paths: Annotated[list[Path], Meta(max_length=16)] = []


class SandboxProfileSpec(Object):
    """What sandboxes of this profile are allowed, and how strongly they are isolated."""

    language: str = ""
    security_level: SecurityLevel = "standard"
    seccomp_profile: Annotated[
        str, Meta(max_length=255, description="RuntimeDefault, or a file below the kubelet's seccomp folder.")
    ] = ""
    runtime_class_name: str | None = None
    network_policies: Annotated[list[NetworkPolicyRules], Meta(max_length=8)] = []
    pre_installed_packages: Annotated[list[str], Meta(max_length=256)] = []
    resource_defaults: Resources | None = None
    filesystem_config: FilesystemConfig | None = None


class SandboxProfileStatus(Object):
    """Whether what the profile names is there."""

    conditions: list[Condition] = []


class SandboxProfile(Object):
    """How a class of sandboxes is isolated."""

    metadata: Metadata
    spec: SandboxProfileSpec = msgspec.field(default_factory=SandboxProfileSpec)
    status: SandboxProfileStatus = msgspec.field(default_factory=SandboxProfileStatus)


# -- RuntimeEnvironment --------------------------------------------------------------------------------


class ResourceRequirements(WithQuantities):
    """What sandboxes of this runtime need at least, and do well with."""

    min_cpu: Quantity | None = None
    min_memory: Quantity | None = None
    recommended_cpu: Quantity | None = None
    recommended_memory: Quantity | None = None


class RuntimeEnvironmentSpec(Object):
    """An image that sandboxes may run, and what is in it."""

    image: Annotated[str, Meta(min_length=1, max_length=512)]
    language: Annotated[str, Meta(min_length=1, max_length=64)]
    version: str = ""
    tags: list[str] = []
    pre_installed_packages: list[str] = []
    package_manager: str = ""
    security_features: list[str] = []
    resource_requirements: ResourceRequirements | None = None


class RuntimeEnvironmentStatus(Object):
    """Whether sandboxes can have this runtime."""

    available: bool = False
    last_validated: datetime | None = None
    conditions: list[Condition] = []


class RuntimeEnvironment(Object):
    """A runtime that Sandboxes and WarmPools name, as `python:3.11`: language and version."""

    metadata: Metadata
    spec: RuntimeEnvironmentSpec
    status: RuntimeEnvironmentStatus = msgspec.field(default_factory=RuntimeEnvironmentStatus)


# -- WarmPool ------------------------------------------------------------------------------------------


class PreloadScript(Object):
    """Python that runs once in each warm sandbox, before anybody's code."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    content: Annotated[str, Meta(max_length=65536)]


class AutoScaling(Object):
    """Grow within maxSize by the rate of claims, and when more than targetUtilization percent is taken."""

    enabled: bool = False
    target_utilization: Annotated[int, Meta(ge=1, le=100)] = 80
    scale_down_delay: Annotated[int, Meta(ge=0, le=86400)] = 300


class WarmPoolSpec(Object):
    """Sandboxes that are started ahead. `maxSize` 0 is unlimited; `ttl` seconds, then one is replaced."""

    runtime: RuntimeName
    min_size: Annotated[int, Meta(ge=0, le=10_000)] = 1
    max_size: Annotated[int, Meta(ge=0, le=10_000)] = 0
    security_level: SecurityLevel = "standard"
    ttl: Annotated[int, Meta(ge=0, le=2_592_000)] = 3600
    resources: PoolResources = msgspec.field(default_factory=PoolResources)
    profile_ref: ProfileRef | None = None
    preload_packages: Annotated[list[str], Meta(max_length=256)] = []
    preload_scripts: Annotated[list[PreloadScript], Meta(max_length=8)] = []
    auto_scaling: AutoScaling = msgspec.field(default_factory=AutoScaling)
    update_strategy: Literal["OnReplenish", "Recreate"] = "OnReplenish"
    allowed_namespaces: Annotated[
        list[str],
        Meta(max_length=256, description="Sandboxes of these namespaces may claim from it; `*` is all."),
    ] = msgspec.field(default_factory=lambda: ["*"])
    published: Annotated[
        bool,
        Meta(description="What it preloads may run in sandboxes that do not name it (in `warmPool`)."),
    ] = True
    owner: (
        Annotated[str, Meta(max_length=253, description="The user who made it, through a gateway's API.")]
        | None
    ) = None


class WarmPoolStatus(Object):
    """How a pool stands: warm and unclaimed, claimed and living, on their way."""

    available_pods: int = 0
    assigned_pods: int = 0
    pending_pods: int = 0
    replicas: Annotated[int, Meta(description="Available and pending: what /scale counts.")] = 0
    selector: str = ""
    last_scale_time: datetime | None = None
    observed_generation: int = 0
    conditions: list[Condition] = []


class WarmPool(Object):
    """Sandboxes started ahead of need."""

    metadata: Metadata
    spec: WarmPoolSpec
    status: WarmPoolStatus = msgspec.field(default_factory=WarmPoolStatus)


# -- WarmPod -------------------------------------------------------------------------------------------


class WarmPodClaim(Object):
    """Who took the pod: written once, by JSON-Patch, and never changed."""

    claim_id: Annotated[str, Meta(min_length=1, max_length=128, description="The sandbox's public id.")]
    sandbox: NamedObject
    time: datetime


class WarmPodSpec(Object):
    """One pod of a pool. `claim` is the only arbiter of who has it."""

    pool_ref: NamedObject
    creation_timestamp: datetime | None = None
    last_heartbeat: datetime | None = None
    claim: WarmPodClaim | None = None


class WarmPodStatus(Object):
    """How a WarmPod stands, and as what its pod was made (its pool may have changed since)."""

    phase: Literal["Pending", "Ready", "Assigned", "Draining", "Terminating"] = "Pending"
    pod_name: str = ""
    pod_namespace: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    node_name: str = ""
    assigned_to: NamedObject | None = None
    assigned_at: datetime | None = None
    runtime: Annotated[str, Meta(description="The RuntimeEnvironment's name.")] = ""
    security_level: str = ""
    resources: PoolResources | None = None
    profile_ref: ProfileRef | None = None
    revision: Annotated[str, Meta(description="Of the pool, when the pod was made.")] = ""
    code: Annotated[
        Literal["", "none", "own", "published"],
        Meta(description="What was preloaded in it: nothing, its pool's owner's code, or published code."),
    ] = ""
    message: str = ""


class WarmPod(Object):
    """A pod with a parked kernel that waits for its sandbox. Its pod and Secret have its name."""

    metadata: Metadata
    spec: WarmPodSpec
    status: WarmPodStatus = msgspec.field(default_factory=WarmPodStatus)
