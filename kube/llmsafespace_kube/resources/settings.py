"""The operator's configuration file (YAML or JSON, camelCase names)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llmsafespace_kube.resources.types import Name, Port

_ADDRESS = r"([0-9.]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}"
Address = Annotated[str, Meta(pattern=f"^{_ADDRESS}$")]
OptionalAddress = Annotated[str, Meta(pattern=f"^({_ADDRESS})?$")]
HttpUrl = Annotated[str, Meta(pattern=r"^https?://[^\s]+$")]
Seconds = Annotated[float, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0)]

_MIN_KEY_BYTES = 32


class SettingsError(Exception):
    """A configuration file or key file cannot be used; the message names the file and the fault."""


class AgentLimits(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Limits of the agent in every sandbox, in addition to those of its Sandbox."""

    parked: Annotated[int, Meta(ge=1, le=8)] = 1  # number of kernels that are kept parked
    processes: Annotated[int, Meta(ge=16)] | None = None  # None: only the kubelet's limit applies
    journal_memory: Bytes = 8 * 1024 * 1024
    journal_disk: Bytes = 256 * 1024 * 1024


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The operator's configuration.

    `sandbox_namespaces` maps each namespace with Sandboxes to its tenant. `egress_proxy` is `ip:port`,
    because sandboxes have no DNS; without it or without its key, sandboxes reach no network. `canaries` are
    addresses that a sandbox must not be able to reach: one that can is never used. If `webhook_config` is
    empty, no webhook is served. Times are in seconds.
    """

    system_namespace: Name
    key_file: Annotated[str, Meta(min_length=1)]  # the key that gateway and operator share
    gateway_url: HttpUrl  # the gateway's public URL
    sandbox_namespaces: dict[Name, Name] = msgspec.field(
        default_factory=lambda: {"agent-sandboxes": "default"}
    )
    pool_namespaces: list[Name] = msgspec.field(default_factory=lambda: ["warm-pools"])

    egress_proxy: OptionalAddress = ""
    egress_key_file: str = ""  # the key that signs egress tokens
    canaries: list[Address] = []
    image_pull_policy: Annotated[str, Meta(pattern="^(Always|IfNotPresent|Never)$")] = "IfNotPresent"
    agent: AgentLimits = AgentLimits()
    pod_node_selector: dict[str, str] = {}  # of the sandboxes' pods
    pod_tolerations: list[dict[str, Any]] = []  # of the sandboxes' pods
    priority_class: str = ""  # of the pods of cold starts; empty: the cluster's default
    warm_priority_class: str = ""  # of the pods of warm pools; should be lower than priority_class
    package_indexes: list[HttpUrl] = []  # package indexes for pip in sandboxes; empty: those of the image

    sandbox_retention: Seconds = 300.0  # an ended Sandbox object is deleted after this time
    claim_grace: Seconds = 60.0  # a claimed WarmPod without a Sandbox is deleted after this time
    schedule_timeout: Seconds = 15.0  # a Sandbox fails if no node takes its pod within this time
    start_timeout: Seconds = 180.0  # a Sandbox fails if its pod does not start within this time
    max_cold_starts: Annotated[int, Meta(ge=1)] = 20  # maximum number at the same time, in all namespaces

    http_port: Port = 8080  # /healthz, /readyz, /metrics
    webhook_port: Port = 9443
    watch_unserved: bool = False  # report Sandboxes and WarmPools in namespaces that no operator serves
    webhook_config: str = ""  # name of the ValidatingWebhookConfiguration
    lease: Name = "llmsafespace-operator"
    images_config_map: Name = "llmsafespace-images"
    identity: str = ""  # name in the Lease; empty: the host name and a random part


def load(path: Path) -> Settings:
    """Load the settings from a file; raises SettingsError."""
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
    """Read the key in a file, without surrounding white space; raises SettingsError."""
    try:
        key = Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if len(key) < _MIN_KEY_BYTES:
        raise SettingsError(f"{path}: a key must have at least {_MIN_KEY_BYTES} bytes, got {len(key)}")
    return key
