"""The status of a Sandbox at each step of its life: pure functions."""

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

_LONGEST = 1024  # maximum characters of a message; a sandbox may have written a part of it
_ORDERLY = {"terminated", "expired"}  # ends with the phase Terminated; all others are Failed
_REFUSALS = {"PodRefused", "NameTaken"}  # the pod was refused, and the sandbox waits for its turn again


class Obstacle(msgspec.Struct, frozen=True):
    """Why a Sandbox is not ready; `reason` is one CamelCase word, `message` is for people."""

    reason: str
    message: str


class Location(msgspec.Struct, frozen=True):
    """The pod in which a sandbox runs; `warm_pod` is set for a warm start."""

    pod: str
    namespace: str
    address: str
    node: str
    warm_pod: NamedObject | None = None

    @classmethod
    def of(cls, warm_pod: WarmPod | None, own_pod: Pod | None) -> Location:
        """Return the location of a warm start (`warm_pod`) or of a cold start (`own_pod`)."""
        if warm_pod is not None:
            now, meta = warm_pod.status, warm_pod.metadata
            reference = NamedObject(meta.name, meta.namespace)
            return cls(now.pod_name, now.pod_namespace, now.pod_ip, now.node_name, reference)
        if own_pod is None:
            raise ValueError("a sandbox runs in a warm pod or in its own")
        meta = own_pod.metadata
        return cls(meta.name, meta.namespace, own_pod.status.pod_ip, own_pod.spec.node_name)


def cold(sandbox: Sandbox, reason: str, now: datetime) -> SandboxStatus:
    """Return the status that records a cold start. This decision is never changed."""
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
    """Return the status of a sandbox that is not ready; `own_pod`: a cold start whose pod was created.

    Without a pod, a new reason resets the condition's transition time: each obstacle has its own time limit.
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
    sandbox: Sandbox, location: Location, runtime: str, warning: str, settings: Settings, now: datetime
) -> SandboxStatus:
    """Return the status of a running sandbox; `warning`: how the runtime differs from the requested one."""
    public = _id(sandbox)
    found = sandbox.status
    if location.warm_pod is not None:
        warm = condition(WARM, True, "Claimed", now=now)
        found = msgspec.structs.replace(
            found,
            start_kind="warm",
            warm_pod_ref=location.warm_pod,
            conditions=merged(found.conditions, warm),
        )
    ready = condition(READY, True, "Running", warning, now=now)
    return msgspec.structs.replace(
        found,
        phase="Running",
        sandbox_id=public,
        runtime=runtime,
        pod_name=location.pod,
        pod_namespace=location.namespace,
        pod_ip=location.address,
        node_name=location.node,
        start_time=now,
        endpoint=f"{settings.gateway_url.rstrip('/')}/api/v1/sandboxes/{public}",
        conditions=merged(found.conditions, ready),
    )


def ended(found: SandboxStatus, end: End, now: datetime) -> SandboxStatus:
    """Return the status of an ended sandbox. It is final."""
    return msgspec.structs.replace(
        found,
        phase="Terminated" if end.end in _ORDERLY else "Failed",
        end=end.end,
        message=end.message[:_LONGEST],
        end_time=now,
        conditions=merged(found.conditions, condition(READY, False, end.reason, end.message, now=now)),
    )


def news(before: SandboxStatus, now: SandboxStatus) -> Condition | None:
    """Return the Ready condition if it reports a new obstacle, for an event. A normal start is none."""
    old, new = _ready(before), _ready(now)
    if new is None or new.status == "True" or new.message in USUAL:
        return None
    same = old is not None and (old.reason, old.message) == (new.reason, new.message)
    return None if same else new


def not_ready_since(found: SandboxStatus) -> datetime | None:
    """Return since when the Ready condition is False; None if it is not."""
    ready = _ready(found)
    return ready.last_transition_time if ready is not None and ready.status == "False" else None


def waits_since(found: SandboxStatus, obstacle: Obstacle) -> datetime | None:
    """Return since when the Ready condition has this obstacle's reason; None if it has another."""
    ready = _ready(found)
    return not_ready_since(found) if ready is not None and ready.reason == obstacle.reason else None


def refusal(found: SandboxStatus) -> Obstacle | None:
    """Return the recorded refusal of the sandbox's pod, if any. It stays while waiting for a turn."""
    ready = _ready(found)
    refused = ready is not None and ready.status == "False" and ready.reason in _REFUSALS
    return Obstacle(ready.reason, ready.message) if ready is not None and refused else None


def _ready(found: SandboxStatus) -> Condition | None:
    return next((one for one in found.conditions if one.type == READY), None)


def _id(sandbox: Sandbox) -> str:
    return names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid)
