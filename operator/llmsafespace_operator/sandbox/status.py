"""What a Sandbox's status says at each step of its life."""

from __future__ import annotations

from datetime import datetime

import msgspec

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.conditions import condition, merged
from llmsafespace_kube.resources.kubernetes import Condition, Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import NamedObject, Sandbox, SandboxStatus, WarmPod
from llmsafespace_operator.pods.ends import End

READY = "Ready"
WARM = "Warm"
STARTING = "its pod is starting"
UNSEEN = "the scheduler has not looked at its pod yet"
USUAL = {STARTING, UNSEEN}
NOT_ASKED = "no warm pool was asked for"

_LONGEST = 1024  # characters of a message, of which a sandbox may have written some
_ORDERLY = {"terminated", "expired"}
_REFUSALS = {"PodRefused", "NameTaken"}  # of a pod, after which its sandbox has to wait for its turn again


class Obstacle(msgspec.Struct, frozen=True):
    """Why a Sandbox is not ready: a CamelCase word, and a sentence for people."""

    reason: str
    message: str


class Place(msgspec.Struct, frozen=True):
    """Where a sandbox runs; `warm_pod` is the one that it was claimed from."""

    pod: str
    namespace: str
    address: str
    node: str
    warm_pod: NamedObject | None = None

    @classmethod
    def of(cls, warm_pod: WarmPod | None, own_pod: Pod | None) -> Place:
        """One of the two is given."""
        if warm_pod is not None:
            now, meta = warm_pod.status, warm_pod.metadata
            reference = NamedObject(meta.name, meta.namespace)
            return cls(now.pod_name, now.pod_namespace, now.pod_ip, now.node_name, reference)
        if own_pod is None:
            raise ValueError("a sandbox runs in a warm pod or in its own")
        meta = own_pod.metadata
        return cls(meta.name, meta.namespace, own_pod.status.pod_ip, own_pod.spec.node_name)


def cold(sandbox: Sandbox, reason: str, now: datetime) -> SandboxStatus:
    """No warm pod was to be had. Once written this is not gone back on."""
    return msgspec.structs.replace(
        sandbox.status,
        sandbox_id=_id(sandbox),
        start_kind="cold",
        start_reason=reason,
        conditions=merged(sandbox.status.conditions, condition(WARM, False, "Cold", reason, now=now)),
    )


def waiting(
    sandbox: Sandbox, runtime: str, obstacle: Obstacle, now: datetime, *, own_pod: bool
) -> SandboxStatus:
    """It is not ready yet, and why; `own_pod`: its start is cold and the pod has been made.

    While there is no pod, the condition's time is that of its reason: each obstacle may take its own.
    """
    found = sandbox.status
    if own_pod and not found.start_kind:
        found = cold(sandbox, sandbox.metadata.annotations.get(names.COLD_REASON, NOT_ASKED), now)
    ready = condition(READY, False, obstacle.reason, obstacle.message, now=now)
    conditions = merged(found.conditions, ready)
    if not own_pod and waits_since(found, obstacle) is None:
        conditions = [ready if one.type == READY else one for one in conditions]
    found = msgspec.structs.replace(found, sandbox_id=_id(sandbox), conditions=conditions)
    if not own_pod:
        return found
    meta = sandbox.metadata
    return msgspec.structs.replace(
        found, phase="Creating", runtime=runtime, pod_name=meta.name, pod_namespace=meta.namespace
    )


def running(
    sandbox: Sandbox, place: Place, runtime: str, warning: str, settings: Settings, now: datetime
) -> SandboxStatus:
    """It can be used, at `endpoint`; `warning` says what differs from what was asked for."""
    public = _id(sandbox)
    found = sandbox.status
    if place.warm_pod is not None:
        warm = condition(WARM, True, "Claimed", now=now)
        found = msgspec.structs.replace(
            found, start_kind="warm", warm_pod_ref=place.warm_pod, conditions=merged(found.conditions, warm)
        )
    ready = condition(READY, True, "Running", warning, now=now)
    return msgspec.structs.replace(
        found,
        phase="Running",
        sandbox_id=public,
        runtime=runtime,
        pod_name=place.pod,
        pod_namespace=place.namespace,
        pod_ip=place.address,
        node_name=place.node,
        start_time=now,
        endpoint=f"{settings.gateway_url.rstrip('/')}/api/v1/sandboxes/{public}",
        conditions=merged(found.conditions, ready),
    )


def ended(found: SandboxStatus, end: End, now: datetime) -> SandboxStatus:
    """It has ended, for good."""
    return msgspec.structs.replace(
        found,
        phase="Terminated" if end.end in _ORDERLY else "Failed",
        end=end.end,
        message=end.message[:_LONGEST],
        end_time=now,
        conditions=merged(found.conditions, condition(READY, False, end.reason, end.message, now=now)),
    )


def news(before: SandboxStatus, now: SandboxStatus) -> Condition | None:
    """What keeps a sandbox from starting, when its status did not say so before; waiting alone is no news."""
    was, is_ = _ready(before), _ready(now)
    if is_ is None or is_.status == "True" or is_.message in USUAL:
        return None
    same = was is not None and (was.reason, was.message) == (is_.reason, is_.message)
    return None if same else is_


def not_ready_since(found: SandboxStatus) -> datetime | None:
    """When its condition began to say that it is not ready, None when it does not say so."""
    ready = _ready(found)
    return ready.last_transition_time if ready is not None and ready.status == "False" else None


def waits_since(found: SandboxStatus, obstacle: Obstacle) -> datetime | None:
    """When its condition began to tell of this obstacle, None when it does not."""
    ready = _ready(found)
    return not_ready_since(found) if ready is not None and ready.reason == obstacle.reason else None


def refusal(found: SandboxStatus) -> Obstacle | None:
    """What its condition says of a pod that was refused. To wait for a turn does not make it untrue."""
    ready = _ready(found)
    refused = ready is not None and ready.status == "False" and ready.reason in _REFUSALS
    return Obstacle(ready.reason, ready.message) if ready is not None and refused else None


def _ready(found: SandboxStatus) -> Condition | None:
    return next((one for one in found.conditions if one.type == READY), None)


def _id(sandbox: Sandbox) -> str:
    return names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid)
