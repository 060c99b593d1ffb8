"""Kubernetes' own types, with only the fields that are read or written here. Ours are in types.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec


class Object(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Base of all types here and in types.py. JSON leaves out defaults; decoding ignores unknown fields."""


class OwnerReference(Object):
    """The owner of an object: if the owner is deleted, Kubernetes deletes the object."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class Metadata(Object):
    """Object metadata."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    owner_references: list[OwnerReference] = []


class AnyObject(Object):
    """An object of any kind, with its spec undecoded."""

    metadata: Metadata
    spec: Any = None


class Condition(Object):
    """A condition of a custom resource. `message` is for people."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


# -- pods ---------------------------------------------------------------------------------------------


class ContainerTerminated(Object):
    """How a container ended."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""


class ContainerWaiting(Object):
    """Why a container has not started yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Object):
    """The state of a container: terminated, waiting, or (neither is set) running."""

    terminated: ContainerTerminated | None = None
    waiting: ContainerWaiting | None = None


class ContainerStatus(Object):
    """The status of one container of a pod."""

    name: str = ""
    ready: bool = False
    started: bool | None = None
    image: str = ""
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodCondition(Object):
    """A condition of a pod, such as Ready or PodScheduled."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class PodStatus(Object):
    """A pod's status."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    start_time: datetime | None = None
    conditions: list[PodCondition] = []
    container_statuses: list[ContainerStatus] = []


class Container(Object):
    """A container's spec."""

    image: str = ""


class PodSpec(Object):
    """A pod's spec."""

    node_name: str = ""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    containers: list[Container] = []
    active_deadline_seconds: int | None = None


class Pod(Object):
    """A pod."""

    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class Event(Object):
    """An event of `events.k8s.io/v1`."""

    metadata: Metadata
    type: str = "Normal"
    reason: str = ""
    note: str = ""


# -- others -------------------------------------------------------------------------------------------


class Secret(Object):
    """A Secret. `data` has decoded bytes; msgspec converts them to and from base64."""

    metadata: Metadata
    data: dict[str, bytes] = {}


class WebhookClientConfig(Object):
    """How the API server calls a webhook. `ca_bundle` has the trusted authorities (PEM)."""

    ca_bundle: bytes = b""


class Webhook(Object):
    """One webhook of a configuration."""

    name: str
    client_config: WebhookClientConfig


class WebhookConfiguration(Object):
    """A ValidatingWebhookConfiguration."""

    metadata: Metadata
    webhooks: list[Webhook] = []
