"""Plans the next actions for a Sandbox: a pure function of the observed state.

One reconcile is: observe (observe.py), plan (here), apply (apply.py). The plan keeps no memory of its own. An
operator that was killed at any point leaves objects in the API server; the next one plans from those. The
life of a Sandbox: add the finalizer; claim a warm pod, or record a cold start and create a pod; bind it (a
gateway binds the sandboxes that it created); Running; then an end, which is final; delete pod and WarmPod;
and after the retention time delete the Sandbox.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from llmsafespace_kube.claims import grants
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import Sandbox, SandboxStatus, WarmPod
from llmsafespace_operator.pods.ends import End, end_of, is_ready, lacks_room, scheduled_at, trouble
from llmsafespace_operator.pods.room import PAUSE
from llmsafespace_operator.sandbox import status

_SLACK = 60  # seconds after the lifetime's end at which Kubernetes ends the pod, if its agent has not
RECHECK = 10.0  # seconds between two checks of a starting pod, whose kubelet may have reported an error
LATE = 10.0  # seconds after the lifetime's end at which the operator ends it: code can stop the agent


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The observed state of a Sandbox and of the objects that belong to it.

    `warm_pod` is claimed for it; `surplus` has further claimed WarmPods, from claims whose answer was lost.
    `obstacle` says why it cannot start now, `turn` whether a cold start may begin now. An object that is
    missing here is missing in the API server as well.
    """

    sandbox: Sandbox
    now: datetime
    settings: Settings
    warm_pod: WarmPod | None = None
    surplus: tuple[WarmPod, ...] = ()
    pod: Pod | None = None
    runtime: str = ""  # the runtime in use, such as python:3.11
    warning: str = ""  # how it differs from the requested one
    obstacle: status.Obstacle | None = None
    turn: bool = True
    complaint: str = ""  # the kubelet's last warning about a pod that does not start


class AddFinalizer(msgspec.Struct, frozen=True):
    """Add the finalizer, so that the operator can delete the warm pod when the Sandbox is deleted."""


class RemoveFinalizer(msgspec.Struct, frozen=True):
    """Remove the finalizer, so that Kubernetes deletes the Sandbox."""


class Claim(msgspec.Struct, frozen=True):
    """Claim a warm pod, or record why the start is cold."""


class StartPod(msgspec.Struct, frozen=True):
    """Create Secret and Pod of a cold start. `deadline`: seconds after which Kubernetes ends the pod."""

    deadline: int


class Bind(msgspec.Struct, frozen=True):
    """Bind the agent at `address` to this sandbox."""

    address: str


class GiveWay(msgspec.Struct, frozen=True):
    """Delete unclaimed warm pods, so that a node has room for this sandbox's pod."""


class Assign(msgspec.Struct, frozen=True):
    """Copy the claim into the WarmPod's status."""

    warm_pod: WarmPod


class LimitPod(msgspec.Struct, frozen=True):
    """Set the pod's deadline, in case that its agent does not end it, and label it with the sandbox's id."""

    pod: Pod
    deadline: int


class Write(msgspec.Struct, frozen=True):
    """Write the Sandbox's status."""

    status: SandboxStatus


class DeleteWarmPod(msgspec.Struct, frozen=True):
    """Delete a WarmPod, and with it its pod."""

    warm_pod: WarmPod


class DeletePod(msgspec.Struct, frozen=True):
    """Delete the pod of a cold start."""

    pod: Pod


class DeleteSandbox(msgspec.Struct, frozen=True):
    """Delete the ended Sandbox object."""


Action = (
    AddFinalizer
    | RemoveFinalizer
    | Claim
    | StartPod
    | Bind
    | GiveWay
    | Assign
    | LimitPod
    | Write
    | DeleteWarmPod
    | DeletePod
    | DeleteSandbox
)


class Plan(msgspec.Struct, frozen=True):
    """Actions in stages. The actions of a stage run concurrently; a stage runs if the one before succeeded.

    `again`: seconds after which to reconcile again, even if nothing changes. None: only after a change.
    """

    stages: tuple[tuple[Action, ...], ...] = ()
    again: float | None = None


def plan(seen: Observed) -> Plan:
    """Return the next actions for a Sandbox."""
    sandbox = seen.sandbox
    if sandbox.metadata.deletion_timestamp is not None:
        return _deleted(seen)
    if sandbox.status.end:
        return _ended(seen)
    end = _end(seen)
    if end is not None:
        return finished(seen, end)
    if names.SANDBOX_FINALIZER not in sandbox.metadata.finalizers:
        return Plan(((AddFinalizer(),),), 0.0)
    if seen.surplus:
        return Plan((tuple(DeleteWarmPod(one) for one in seen.surplus),), 0.0)
    if seen.warm_pod is not None or seen.pod is not None:
        return _run(seen)
    if seen.obstacle is not None:
        return blocked(seen, seen.obstacle)
    if not (names.made_by_gateway(sandbox.metadata.name) or sandbox.status.start_kind == "cold"):
        return Plan(((Claim(),),), 0.0)
    return _start(seen)


def finished(seen: Observed, end: End) -> Plan:
    """Plan the end of a sandbox: write the end first, then delete pod and WarmPods, its evidence."""
    ended = status.ended(seen.sandbox.status, end, seen.now)
    return Plan(((Write(ended),), _releases(seen)), seen.settings.sandbox_retention)


def blocked(seen: Observed, obstacle: status.Obstacle) -> Plan:
    """Plan for a sandbox that cannot start now: write the obstacle; after the time limit, it has failed."""
    limit = _limit(seen, obstacle)
    left = limit - (seen.now - _waits_since(seen, obstacle)).total_seconds()
    if left <= 0:
        words = f"the sandbox did not start within {limit:g} s: {obstacle.message}"
        return finished(seen, End("failed", words, obstacle.reason))
    waiting = status.waiting(
        seen.sandbox, seen.runtime, obstacle, seen.now, own_pod=_own_pod(seen) is not None
    )
    return Plan((_write(seen, waiting),), left)


def is_starting(seen: Observed) -> bool:
    """Whether the sandbox is a cold start whose pod exists and that is not running yet."""
    sandbox = seen.sandbox
    living = not sandbox.status.end and sandbox.metadata.deletion_timestamp is None
    return living and sandbox.status.phase != "Running" and _own_pod(seen) is not None


def deadline(max_lifetime: int, lived: float) -> int:
    """Return `activeDeadlineSeconds` of a pod that has lived `lived` s and may live `max_lifetime` s more."""
    return int(lived) + max_lifetime + _SLACK


def _deleted(seen: Observed) -> Plan:
    """Plan the deletion of a Sandbox. Kubernetes deletes a cold start's pod with its owner."""
    if names.SANDBOX_FINALIZER not in seen.sandbox.metadata.finalizers:
        return Plan()
    return Plan((_warm_releases(seen), (RemoveFinalizer(),)))


def _ended(seen: Observed) -> Plan:
    since = seen.sandbox.status.end_time or seen.now
    left = seen.settings.sandbox_retention - (seen.now - since).total_seconds()
    if left <= 0:
        return Plan((_releases(seen), (DeleteSandbox(),)))
    return Plan((_releases(seen),), left)


def _end(seen: Observed) -> End | None:
    """Return how the sandbox has ended, if that is not in its status yet; None while it starts or runs."""
    if seen.pod is not None:
        end = end_of(seen.pod)
        if end is not None:
            return end
        if _is_another(seen.pod, seen.sandbox):
            return End("lost", "its pod was deleted, and an operator with an old cache created it again")
    elif seen.warm_pod is not None or seen.sandbox.status.pod_name:
        return End("lost", "its pod was deleted")
    if _was_warm(seen.sandbox) and seen.warm_pod is None:
        return End("lost", "its warm pod was deleted")
    return None


def _is_another(pod: Pod, sandbox: Sandbox) -> bool:
    """Whether this is not the pod in which the sandbox was running."""
    known = sandbox.status.pod_ip
    return bool(known and pod.status.pod_ip) and pod.status.pod_ip != known


def _was_warm(sandbox: Sandbox) -> bool:
    claimed = names.made_by_gateway(sandbox.metadata.name) and sandbox.spec.warm_pod is not None
    return claimed or sandbox.status.start_kind == "warm"


def _run(seen: Observed) -> Plan:
    """Plan for a sandbox that has a pod: wait until it is ready, bind it, and watch its lifetime.

    A gateway binds the sandboxes that it created; the operator binds the others before they are Running.
    """
    mirrors = _mirrors(seen)
    if seen.sandbox.status.phase == "Running":
        left = _lifetime_left(seen)
        if left is not None and left + LATE <= 0:
            return finished(seen, End("expired", "the sandbox reached its maximum lifetime"))
        return Plan((mirrors,), None if left is None else left + LATE)
    own = _own_pod(seen)
    if own is not None and not is_ready(own):
        return _wait_for(seen, own)
    location = status.Location.of(seen.warm_pod, own)
    running = status.running(seen.sandbox, location, seen.runtime, seen.warning, seen.settings, seen.now)
    if names.made_by_gateway(seen.sandbox.metadata.name):
        return Plan(((*mirrors, Write(running)),))
    return Plan(((*mirrors, Bind(location.address)), (Write(running),)))


def _lifetime_left(seen: Observed) -> float | None:
    """Return the seconds until the end of its lifetime; None if its start is not recorded."""
    ends = grants.ends_at(seen.sandbox)
    return None if ends is None else (ends - seen.now).total_seconds()


def _wait_for(seen: Observed, own: Pod) -> Plan:
    """Plan for a pod that is not ready: the obstacle is what the scheduler or the kubelet reports."""
    if own.spec.node_name:
        words = trouble(own) or seen.complaint or status.STARTING
        found = blocked(seen, status.Obstacle("PodNotReady", words))
        return Plan(found.stages, min(found.again or 0.0, RECHECK))
    words = trouble(own) or status.UNSEEN
    found = blocked(seen, status.Obstacle(names.UNSCHEDULABLE, words))
    first, *others = found.stages
    ended = any(isinstance(action, Write) and action.status.end for action in first)
    if ended or not lacks_room(own):
        return found
    return Plan(((*first, GiveWay()), *others), min(found.again or 0.0, PAUSE))


def _mirrors(seen: Observed) -> tuple[Action, ...]:
    """Return the actions that record the start in the WarmPod and in the Pod."""
    found: list[Action] = []
    if seen.warm_pod is not None and seen.warm_pod.status.phase != "Assigned":
        found.append(Assign(seen.warm_pod))
    if seen.pod is not None and seen.pod.spec.active_deadline_seconds is None:
        born = seen.pod.status.start_time or seen.now
        lived = (seen.now - born).total_seconds()
        found.append(LimitPod(seen.pod, deadline(seen.sandbox.spec.max_lifetime, lived)))
    return tuple(found)


def _start(seen: Observed) -> Plan:
    if not seen.turn:
        limit = seen.settings.max_cold_starts
        words = f"waits for its turn: {limit} cold starts are running, which is the limit"
        turn = status.Obstacle("ColdStartLimit", words)
        return blocked(seen, status.refusal(seen.sandbox.status) or turn)
    lifetime = deadline(seen.sandbox.spec.max_lifetime, seen.settings.start_timeout)
    begun = status.Obstacle("PodNotReady", status.STARTING)
    creating = status.waiting(seen.sandbox, seen.runtime, begun, seen.now, own_pod=True)
    return Plan(((StartPod(lifetime),), _write(seen, creating)), seen.settings.start_timeout)


def _own_pod(seen: Observed) -> Pod | None:
    """Return the pod of a cold start; None for a warm start."""
    return seen.pod if seen.warm_pod is None else None


def _limit(seen: Observed, obstacle: status.Obstacle) -> float:
    """Return the seconds that it may wait: less for a node than for a pod that is starting."""
    crowded = obstacle.reason in (names.UNSCHEDULABLE, "PodRefused")
    return seen.settings.schedule_timeout if crowded else seen.settings.start_timeout


def _waits_since(seen: Observed, obstacle: status.Obstacle) -> datetime:
    """Return since when it waits for this obstacle, as far as it is recorded."""
    own = _own_pod(seen)
    if own is None:
        return status.waits_since(seen.sandbox.status, obstacle) or seen.now
    times = [
        status.not_ready_since(seen.sandbox.status),
        own.metadata.creation_timestamp,
        scheduled_at(own),
    ]
    return max((time for time in times if time is not None), default=seen.now)


def _write(seen: Observed, wanted: SandboxStatus) -> tuple[Action, ...]:
    return (Write(wanted),) if wanted != seen.sandbox.status else ()


def _releases(seen: Observed) -> tuple[Action, ...]:
    own = _own_pod(seen)
    if own is None or own.metadata.deletion_timestamp is not None:
        return _warm_releases(seen)
    return (*_warm_releases(seen), DeletePod(own))


def _warm_releases(seen: Observed) -> tuple[Action, ...]:
    claimed = (seen.warm_pod, *seen.surplus)
    return tuple(
        DeleteWarmPod(one) for one in claimed if one is not None and one.metadata.deletion_timestamp is None
    )
