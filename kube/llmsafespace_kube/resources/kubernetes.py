"""Kubernetes' own types, as far as they are read and written here. Ours are in types.py."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec


class Object(msgspec.Struct, omit_defaults=True, rename="camel"):
    """The base of all types here and in types.py: defaults are left out in JSON, unknown fields ignored."""


class OwnerReference(Object):
    """The object that another one is deleted with."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class Metadata(Object):
    """What of Kubernetes' object metadata is read and written here."""

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
    """Any object of which only the metadata matters."""

    metadata: Metadata
    spec: Any = None


class Condition(Object):
    """A condition in the Kubernetes manner."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: datetime | None = None
    observed_generation: int = 0


# -- pods ---------------------------------------------------------------------------------------------


class ContainerTerminated(Object):
    """Why a container is no more."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""


class ContainerWaiting(Object):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(Object):
    """One of the two, or neither while it runs."""

    terminated: ContainerTerminated | None = None
    waiting: ContainerWaiting | None = None


class ContainerStatus(Object):
    """A container of a pod."""

    name: str = ""
    ready: bool = False
    started: bool | None = None
    image: str = ""
    state: ContainerState = msgspec.field(default_factory=ContainerState)


class PodCondition(Object):
    """A pod's condition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class PodStatus(Object):
    """What is read of a pod's status."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    start_time: datetime | None = None
    conditions: list[PodCondition] = []
    container_statuses: list[ContainerStatus] = []


class Container(Object):
    """What is read of a container's spec."""

    image: str = ""


class PodSpec(Object):
    """What is read of a pod's spec."""

    node_name: str = ""
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    containers: list[Container] = []
    active_deadline_seconds: int | None = None


class Pod(Object):
    """A pod, as far as it is read."""

    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class Event(Object):
    """What is read of an event."""

    metadata: Metadata
    type: str = "Normal"
    reason: str = ""
    note: str = ""


# -- others -------------------------------------------------------------------------------------------


class Secret(Object):
    """A Secret; base64 is JSON's affair."""

    metadata: Metadata
    data: dict[str, bytes] = {}


class WebhookClientConfig(Object):
    """How a webhook is called; `ca_bundle` is PEM."""

    ca_bundle: bytes = b""


class Webhook(Object):
    """One of the webhooks of a configuration."""

    name: str
    client_config: WebhookClientConfig


class WebhookConfiguration(Object):
    """A ValidatingWebhookConfiguration."""

    metadata: Metadata
    webhooks: list[Webhook] = []
