"""Plans the next deletions and creations of a warm pool: a pure function of the observed state.

As in the local backend, minSize and maxSize count the unclaimed WarmPods, ready or not. A claimed pod belongs
to its sandbox and is replaced in the pool. With autoscaling, the pool also grows with the rate of claims; it
shrinks only after scaleDownDelay, for which the plan remembers past requests. Outdated WarmPods are replaced
a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from llmsafespace_kube.resources.types import WarmPoolSpec

BURST = 25  # maximum number of creations in one round
_MAX_BACKOFF = 300.0  # maximum seconds between two tries while starts fail


class Unclaimed(msgspec.Struct, frozen=True):
    """An unclaimed WarmPod that is not being deleted.

    `current` is False if the pool has changed since its pod was created. `ours` is False if someone created
    it by hand.
    """

    name: str
    age: float  # seconds
    ready: bool
    current: bool = True
    ours: bool = True


class Wish(msgspec.Struct, frozen=True):
    """The size that the load required at some time."""

    time: float
    size: int


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The observed state of a pool.

    `rate`: claims per second. `lead`: seconds from a WarmPod's creation until it is ready. `wishes` are those
    of the last plan. No WarmPod is created before `retry_at`, and none while `may_create` is False.
    """

    spec: WarmPoolSpec
    unclaimed: Sequence[Unclaimed] = ()
    claimed: int = 0
    rate: float = 0.0
    lead: float = 0.0
    now: float = 0.0
    wishes: Sequence[Wish] | None = None  # None: this is the first plan
    retry_at: float = 0.0
    may_create: bool = True


class Actions(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: first delete the WarmPods of these names, then create `create` new ones.

    Plan again at `look_at` at the latest (None: only after a change). `desired` is the desired number of
    unclaimed WarmPods; `limited` is True if it would be larger without maxSize.
    """

    desired: int
    limited: bool
    delete: tuple[str, ...] = ()
    create: int = 0
    wishes: tuple[Wish, ...] = ()
    look_at: float | None = None


def wanted(spec: WarmPoolSpec, claimed: int, rate: float, lead: float) -> int:
    """Return how many unclaimed WarmPods the load requires now, without regard to maxSize.

    With autoscaling there are enough for the claims that arrive while a replacement starts, plus three
    standard deviations, because claims arrive at random; and at most targetUtilization percent of all are
    claimed.
    """
    if not spec.auto_scaling.enabled:
        return spec.min_size
    arrivals = rate * lead
    ahead = math.ceil(arrivals + 3 * math.sqrt(arrivals))
    share = spec.auto_scaling.target_utilization / 100
    return max(spec.min_size, ahead, math.ceil(claimed / share) - claimed)


def plan(observed: Observed) -> Actions:
    """Return the next deletions and creations. The pool never exceeds maxSize."""
    spec, now = observed.spec, observed.now
    wishes = _wishes(observed)
    wish = wishes[0].size
    desired = min(wish, spec.max_size) if spec.max_size else wish

    useless = [one for one in observed.unclaimed if not one.ready and not one.current]
    present = [one for one in observed.unclaimed if one.ready or one.current]
    outdated = [one for one in present if _outdated(one, spec)]
    kept = [one for one in present if not _outdated(one, spec)]
    surplus = _dispensable(kept, _surplus(spec, desired, kept))
    kept = _without(kept, surplus)
    present = [*outdated, *kept]

    missing = _missing(desired, present, kept)
    room = spec.max_size - len(present) if spec.max_size else math.inf
    may_create = observed.may_create and now >= observed.retry_at
    replaced = _dispensable(outdated, _too_many(desired, present, missing if may_create else 0, room))
    create = int(min(missing, room + len(replaced), BURST)) if may_create else 0
    return Actions(
        desired=desired,
        limited=wish > desired,
        delete=tuple(one.name for one in (*useless, *surplus, *replaced)),
        create=max(0, create),
        wishes=wishes,
        look_at=_look_at(observed, wishes, missing, create),
    )


def backoff(failures: int) -> float:
    """Return the seconds to wait after this number of failures in a row."""
    return min(_MAX_BACKOFF, 2.0 ** min(failures, 30)) if failures else 0.0


def _wishes(observed: Observed) -> tuple[Wish, ...]:
    """Return the required sizes of the last scaleDownDelay seconds: the largest first, then later ones.

    At the first plan the past is unknown, and the present number of WarmPods counts as required.
    """
    spec, now = observed.spec, observed.now
    size = wanted(spec, observed.claimed, observed.rate, observed.lead)
    if not spec.auto_scaling.enabled:
        return (Wish(now, size),)
    past = observed.wishes
    if past is None:
        past = (Wish(now, len(observed.unclaimed)),)
    delay = spec.auto_scaling.scale_down_delay
    return (*(wish for wish in past if wish.size > size and wish.time + delay > now), Wish(now, size))


def _outdated(one: Unclaimed, spec: WarmPoolSpec) -> bool:
    """Whether a ready WarmPod is over its ttl, or outdated in a pool with the strategy Recreate."""
    if not one.ready:
        return False
    return bool(spec.ttl and one.age >= spec.ttl) or (not one.current and spec.update_strategy == "Recreate")


def _surplus(spec: WarmPoolSpec, desired: int, kept: Sequence[Unclaimed]) -> int:
    """Return how many are too many. A WarmPod made by hand replaces another one only once it is ready."""
    pending_by_hand = sum(not one.ready and not one.ours for one in kept)
    over = len(kept) - spec.max_size if spec.max_size else 0
    return max(len(kept) - pending_by_hand - desired, over)


def _missing(desired: int, present: Sequence[Unclaimed], kept: Sequence[Unclaimed]) -> int:
    """Return how many to create. Replacements of outdated WarmPods are created a few at a time."""
    absent = max(0, desired - len(present))
    replacements = max(0, desired - len(kept)) - absent
    pending = sum(not one.ready for one in kept)
    return absent + min(replacements, max(0, _few(desired) - pending - absent))


def _too_many(desired: int, present: Sequence[Unclaimed], missing: int, room: float) -> int:
    """Return how many outdated WarmPods to delete now: as many as have a replacement that is ready.

    If maxSize leaves no room for a replacement beside the old one, a few are deleted before that.
    """
    replaced = sum(one.ready for one in present) - desired
    return int(max(replaced, missing - room, -room))


def _few(desired: int) -> int:
    return max(1, desired // 4)


def _dispensable(some: Sequence[Unclaimed], count: int) -> list[Unclaimed]:
    """Return the `count` least useful ones: first not ready, then the oldest; those made by hand last."""
    return sorted(some, key=lambda one: (not one.ours, one.ready, -one.age))[: max(0, count)]


def _without(some: Sequence[Unclaimed], others: Sequence[Unclaimed]) -> list[Unclaimed]:
    names = {one.name for one in others}
    return [one for one in some if one.name not in names]


def _look_at(observed: Observed, wishes: Sequence[Wish], missing: int, create: int) -> float | None:
    spec, now = observed.spec, observed.now
    times = [now + spec.ttl - one.age for one in observed.unclaimed if spec.ttl and one.age < spec.ttl]
    if len(wishes) > 1:
        times.append(wishes[0].time + spec.auto_scaling.scale_down_delay)
    if missing and observed.retry_at > now:
        times.append(observed.retry_at)
    if BURST <= create < missing:
        times.append(now)
    return min(times, default=None)
