"""What the operator is told by its configuration file (YAML or JSON, camelCase names)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llmsafespace_kube.resources.types import Name, Port

_ADDRESS = r"([0-9.]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}"
Address = Annotated[str, Meta(pattern=f"^{_ADDRESS}$")]
NoAddress = Annotated[str, Meta(pattern=f"^({_ADDRESS})?$")]
HttpUrl = Annotated[str, Meta(pattern=r"^https?://[^\s]+$")]
Seconds = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]

_LEAST_KEY = 32  # bytes


class SettingsError(Exception):
    """A file of the configuration cannot be used; the message says which, what is wrong and where."""


class AgentLimits(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What the agent of every sandbox is told, beside what its Sandbox says."""

    parked: Annotated[int, Meta(ge=1, le=8)] = 1  # kernels kept ahead of need
    processes: Annotated[int, Meta(ge=16)] | None = None  # None: the kubelet's limit holds
    journal_memory: Bytes = 8 * 1024 * 1024
    journal_disk: Bytes = 256 * 1024 * 1024


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The operator's configuration.

    `sandbox_namespaces` maps each namespace whose Sandboxes are served to its tenant. `egress_proxy` is
    `ip:port` (sandboxes have no DNS); without it, or without its key, nothing gets out. `canaries` are
    addresses that a sandbox must not reach before it is used. `webhook_config` empty: no webhook is served.
    Times are in seconds.
    """

    system_namespace: Name
    key_file: Annotated[str, Meta(min_length=1)]  # the key that gateway and operator share
    gateway_url: HttpUrl  # where people reach the gateway
    sandbox_namespaces: dict[Name, Name] = msgspec.field(
        default_factory=lambda: {"agent-sandboxes": "default"}
    )
    pool_namespaces: list[Name] = msgspec.field(default_factory=lambda: ["warm-pools"])

    egress_proxy: NoAddress = ""
    egress_key_file: str = ""  # with the key that egress tokens are signed with
    canaries: list[Address] = []
    image_pull_policy: Annotated[str, Meta(pattern="^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    agent: AgentLimits = AgentLimits()
    pod_node_selector: dict[str, str] = {}  # where sandboxes' pods may run
    pod_tolerations: list[dict[str, Any]] = []  # as a Pod has them
    priority_class: str = ""  # of the pods of cold starts, for which somebody waits; empty: the default
    warm_priority_class: str = ""  # of the pods of pools, below the other
    package_indexes: list[HttpUrl] = []  # from which sandboxes install; none: what their images say

    sandbox_retention: Seconds = 300.0  # an ended Sandbox object stays so long
    claim_grace: Seconds = 60.0  # a claimed WarmPod without its Sandbox lives so long
    schedule_timeout: Seconds = 15.0  # a Sandbox whose pod no node takes fails after it
    start_timeout: Seconds = 180.0  # a Sandbox whose pod has a node, and does not start, fails after it
    max_cold_starts: Annotated[int, Meta(ge=1)] = 20  # at one time, in all namespaces

    http_port: Port = 8080  # /healthz, /readyz, /metrics
    webhook_port: Port = 9443
    watch_unserved: bool = False  # tell of Sandboxes and WarmPools in namespaces that nobody serves
    webhook_config: str = ""  # name of the ValidatingWebhookConfiguration
    lease: Name = "llmsafespace-operator"
    images_config_map: Name = "llmsafespace-images"
    identity: str = ""  # in the Lease; empty: the host's name and a random part


def load(path: Path) -> Settings:
    """The settings in this file; raises SettingsError."""
    try:
        settings = msgspec.yaml.decode(path.read_bytes(), type=Settings)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {' '.join(str(error).split())}") from None
    for name in ("sandbox_namespaces", "pool_namespaces"):
        if not getattr(settings, name):
            raise SettingsError(f"{path}: at least one namespace is needed - at `$.{_camel(name)}`")
    return settings


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def read_key(path: str) -> bytes:
    """The key in this file, without white space around it; raises SettingsError."""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if len(key) < _LEAST_KEY:
        raise SettingsError(f"{path}: a key has at least {_LEAST_KEY} bytes")
    return key
