"""What to do next about a Sandbox: a pure function of what is there.

However far an operator came before it was killed, the same function goes on from what it left behind.
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

_SLACK = 60  # seconds after which Kubernetes ends what its agent should have ended
LOOK_AGAIN = 10.0  # seconds between looks at a pod that starts, of which the kubelet may have complained
LATE = 10.0  # seconds after which the operator does; code may slow its agent down, or stop it


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A Sandbox and what belongs to it.

    `warm_pod` is claimed for it, and so is what is `surplus`, by an operator that never heard the answer to
    its claim. `obstacle` says why it cannot be started as things stand, `turn` whether a cold start may
    begin now. What is not here is not in the API server either, as it was asked where a cache may lag.
    """

    sandbox: Sandbox
    now: datetime
    settings: Settings
    warm_pod: WarmPod | None = None
    surplus: tuple[WarmPod, ...] = ()
    pod: Pod | None = None
    runtime: str = ""  # that serves
    warning: str = ""  # how that differs from the one asked for
    obstacle: status.Obstacle | None = None
    turn: bool = True
    complaint: str = ""  # of the kubelet about a pod that does not start


class AddFinalizer(msgspec.Struct, frozen=True):
    """So that its warm pod is deleted with it."""


class RemoveFinalizer(msgspec.Struct, frozen=True):
    """Let the Sandbox go."""


class Claim(msgspec.Struct, frozen=True):
    """Take a warm pod, or note why the start is cold."""


class StartPod(msgspec.Struct, frozen=True):
    """Make Secret and Pod of a cold start. `deadline`: seconds after which Kubernetes ends the pod."""

    deadline: int


class Bind(msgspec.Struct, frozen=True):
    """Make the agent at `address` this sandbox's."""

    address: str


class GiveWay(msgspec.Struct, frozen=True):
    """Delete warm pods that nobody has claimed, so that a node has room for this sandbox's pod."""


class Assign(msgspec.Struct, frozen=True):
    """Say in the WarmPod's status what its claim says."""

    warm_pod: WarmPod


class LimitPod(msgspec.Struct, frozen=True):
    """Let Kubernetes end the pod when its agent does not, and label it with the sandbox's id."""

    pod: Pod
    deadline: int


class Write(msgspec.Struct, frozen=True):
    """Write the Sandbox's status."""

    status: SandboxStatus


class DeleteWarmPod(msgspec.Struct, frozen=True):
    """Delete a WarmPod, and by that its pod."""

    warm_pod: WarmPod


class DeletePod(msgspec.Struct, frozen=True):
    """Delete a cold sandbox's pod."""

    pod: Pod


class Forget(msgspec.Struct, frozen=True):
    """Delete the Sandbox itself."""


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
    | Forget
)


class Plan(msgspec.Struct, frozen=True):
    """Actions in stages: those of a stage at the same time, a stage only when the one before succeeded.

    `again`: look again after so many seconds, even if nothing is heard.
    """

    stages: tuple[tuple[Action, ...], ...] = ()
    again: float | None = None


def plan(seen: Observed) -> Plan:
    """What to do next."""
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
    """The sandbox has ended: first say so, then delete what shows it."""
    ended = status.ended(seen.sandbox.status, end, seen.now)
    return Plan(((Write(ended),), _releases(seen)), seen.settings.sandbox_retention)


def blocked(seen: Observed, obstacle: status.Obstacle) -> Plan:
    """It cannot go on, which its status tells; after a while it has failed."""
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
    """Whether a cold start is under way."""
    sandbox = seen.sandbox
    living = not sandbox.status.end and sandbox.metadata.deletion_timestamp is None
    return living and sandbox.status.phase != "Running" and _own_pod(seen) is not None


def deadline(max_lifetime: int, lived: float) -> int:
    """`activeDeadlineSeconds` of a pod that has `lived` and may be a sandbox for `max_lifetime` more."""
    return int(lived) + max_lifetime + _SLACK


def _deleted(seen: Observed) -> Plan:
    """A cold start's pod goes with its owner."""
    if names.SANDBOX_FINALIZER not in seen.sandbox.metadata.finalizers:
        return Plan()
    return Plan((_warm_releases(seen), (RemoveFinalizer(),)))


def _ended(seen: Observed) -> Plan:
    since = seen.sandbox.status.end_time or seen.now
    left = seen.settings.sandbox_retention - (seen.now - since).total_seconds()
    if left <= 0:
        return Plan((_releases(seen), (Forget(),)))
    return Plan((_releases(seen),), left)


def _end(seen: Observed) -> End | None:
    """How the sandbox has ended since somebody looked last, None while it lives or starts."""
    if seen.pod is not None:
        end = end_of(seen.pod)
        if end is not None:
            return end
        if _is_another(seen.pod, seen.sandbox):
            return End("lost", "its pod was deleted, and made anew by an operator that did not know")
    elif seen.warm_pod is not None or seen.sandbox.status.pod_name:
        return End("lost", "its pod was deleted")
    if _was_warm(seen.sandbox) and seen.warm_pod is None:
        return End("lost", "its warm pod was deleted")
    return None


def _is_another(pod: Pod, sandbox: Sandbox) -> bool:
    """Whether it is not the pod that the sandbox came to run in."""
    known = sandbox.status.pod_ip
    return bool(known and pod.status.pod_ip) and pod.status.pod_ip != known


def _was_warm(sandbox: Sandbox) -> bool:
    claimed = names.made_by_gateway(sandbox.metadata.name) and sandbox.spec.warm_pod is not None
    return claimed or sandbox.status.start_kind == "warm"


def _run(seen: Observed) -> Plan:
    """A gateway binds what it made, at the same time; the others run once they are bound here."""
    mirrors = _mirrors(seen)
    if seen.sandbox.status.phase == "Running":
        left = _lifetime_left(seen)
        if left is not None and left + LATE <= 0:
            return finished(seen, End("expired", "the sandbox reached its maximum lifetime"))
        return Plan((mirrors,), None if left is None else left + LATE)
    own = _own_pod(seen)
    if own is not None and not is_ready(own):
        return _wait_for(seen, own)
    place = status.Place.of(seen.warm_pod, own)
    running = status.running(seen.sandbox, place, seen.runtime, seen.warning, seen.settings, seen.now)
    if names.made_by_gateway(seen.sandbox.metadata.name):
        return Plan(((*mirrors, Write(running)),))
    return Plan(((*mirrors, Bind(place.address)), (Write(running),)))


def _lifetime_left(seen: Observed) -> float | None:
    """Seconds of its life, None when nobody knows when it began."""
    ends = grants.ends_at(seen.sandbox)
    return None if ends is None else (ends - seen.now).total_seconds()


def _wait_for(seen: Observed, own: Pod) -> Plan:
    """Its pod is not ready: the scheduler or the kubelet may say why."""
    if own.spec.node_name:
        words = trouble(own) or seen.complaint or status.STARTING
        found = blocked(seen, status.Obstacle("PodNotReady", words))
        return Plan(found.stages, min(found.again or 0.0, LOOK_AGAIN))
    words = trouble(own) or status.UNSEEN
    found = blocked(seen, status.Obstacle(names.UNSCHEDULABLE, words))
    first, *others = found.stages
    ended = any(isinstance(action, Write) and action.status.end for action in first)
    if ended or not lacks_room(own):
        return found
    return Plan(((*first, GiveWay()), *others), min(found.again or 0.0, PAUSE))


def _mirrors(seen: Observed) -> tuple[Action, ...]:
    """What of a start is told elsewhere than in the Sandbox."""
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
        words = f"waits for its turn: {limit} sandboxes are being started, which is the limit"
        turn = status.Obstacle("ColdStartLimit", words)
        return blocked(seen, status.refusal(seen.sandbox.status) or turn)
    lifetime = deadline(seen.sandbox.spec.max_lifetime, seen.settings.start_timeout)
    begun = status.Obstacle("PodNotReady", status.STARTING)
    creating = status.waiting(seen.sandbox, seen.runtime, begun, seen.now, own_pod=True)
    return Plan(((StartPod(lifetime),), _write(seen, creating)), seen.settings.start_timeout)


def _own_pod(seen: Observed) -> Pod | None:
    """The pod of a cold start."""
    return seen.pod if seen.warm_pod is None else None


def _limit(seen: Observed, obstacle: status.Obstacle) -> float:
    """Seconds that it may wait: for room not as long as for what is under way."""
    crowded = obstacle.reason in (names.UNSCHEDULABLE, "PodRefused")
    return seen.settings.schedule_timeout if crowded else seen.settings.start_timeout


def _waits_since(seen: Observed, obstacle: status.Obstacle) -> datetime:
    """Since when it waits for what it waits for, so far as anybody was there to see."""
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
