"""What a warm pool should do next: a pure function of what is there.

As in the local backend, minSize and maxSize count what nobody has claimed, ready and on its way alike: a
claimed pod is its sandbox's, and its place in the pool is refilled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from llmsafespace_kube.resources.types import WarmPoolSpec

BURST = 25  # creations in one round
_MAX_BACKOFF = 300.0  # seconds between attempts while starts fail


class Unclaimed(msgspec.Struct, frozen=True):
    """A WarmPod that nobody has and nobody is deleting.

    `current` False: its pod is not made as the pool wants it now. `ours` False: somebody made it by hand.
    """

    name: str
    age: float  # seconds
    ready: bool
    current: bool = True
    ours: bool = True


class Wish(msgspec.Struct, frozen=True):
    """How many the pool wanted at some time."""

    time: float
    size: int


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as it is.

    `rate`: claims per second; `lead`: seconds from a WarmPod's creation until it is ready. `wishes` are those
    of the last plan. Nothing is created before `retry_at`, nor at all unless `may_create`.
    """

    spec: WarmPoolSpec
    unclaimed: Sequence[Unclaimed] = ()
    claimed: int = 0
    rate: float = 0.0
    lead: float = 0.0
    now: float = 0.0
    wishes: Sequence[Wish] | None = None  # None: this is the first look
    retry_at: float = 0.0
    may_create: bool = True


class Actions(msgspec.Struct, frozen=True, kw_only=True):
    """Delete these, then create so many.

    Look again at `look_at` at the latest (None: when something happens). `desired` is the size that the pool
    is kept at, `limited` whether it would be more without maxSize.
    """

    desired: int
    limited: bool
    delete: tuple[str, ...] = ()
    create: int = 0
    wishes: tuple[Wish, ...] = ()
    look_at: float | None = None


def wanted(spec: WarmPoolSpec, claimed: int, rate: float, lead: float) -> int:
    """How many unclaimed WarmPods would do now, maxSize aside.

    With autoscaling enough for the claims that come while a replacement starts (and three times their
    deviation, for they come at random), and so many that those claimed are at most targetUtilization
    percent of all.
    """
    if not spec.auto_scaling.enabled:
        return spec.min_size
    arrivals = rate * lead
    ahead = math.ceil(arrivals + 3 * math.sqrt(arrivals))
    share = spec.auto_scaling.target_utilization / 100
    return max(spec.min_size, ahead, math.ceil(claimed / share) - claimed)


def plan(observed: Observed) -> Actions:
    """Never over maxSize; not below what is wanted; what is too old or of an old make is replaced."""
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
    """Seconds to wait after so many attempts in a row that failed."""
    return min(_MAX_BACKOFF, 2.0 ** min(failures, 30)) if failures else 0.0


def _wishes(observed: Observed) -> tuple[Wish, ...]:
    """What was wanted within scaleDownDelay, the largest first; later and smaller ones follow it.

    At the first look nothing is known of the past, so what is there counts as wanted.
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
    """Too old, or of an old make in a pool that does not wait until those are claimed."""
    if not one.ready:
        return False
    return bool(spec.ttl and one.age >= spec.ttl) or (not one.current and spec.update_strategy == "Recreate")


def _surplus(spec: WarmPoolSpec, desired: int, kept: Sequence[Unclaimed]) -> int:
    """How many are too many: what was made by hand takes another's place once it is ready, not before."""
    on_their_way = sum(not one.ready and not one.ours for one in kept)
    over = len(kept) - spec.max_size if spec.max_size else 0
    return max(len(kept) - on_their_way - desired, over)


def _missing(desired: int, present: Sequence[Unclaimed], kept: Sequence[Unclaimed]) -> int:
    """How many to create; those that only replace others come a few at a time."""
    absent = max(0, desired - len(present))
    replacements = max(0, desired - len(kept)) - absent
    pending = sum(not one.ready for one in kept)
    return absent + min(replacements, max(0, _few(desired) - pending - absent))


def _too_many(desired: int, present: Sequence[Unclaimed], missing: int, room: float) -> int:
    """How many outdated ones may go now: those whose replacement is ready, and what room it takes.

    Where maxSize leaves no room for a replacement beside the old one, a few go before theirs is ready.
    """
    replaced = sum(one.ready for one in present) - desired
    return int(max(replaced, missing - room, -room))


def _few(desired: int) -> int:
    return max(1, desired // 4)


def _dispensable(some: Sequence[Unclaimed], count: int) -> list[Unclaimed]:
    """Those that are missed least: not yet ready, then oldest; what somebody made by hand last."""
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
