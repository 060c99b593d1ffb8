"""What a warm pool should do next: a pure function of what is there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from llmsafespace_gateway.backends.base import SandboxSpec, WarmPoolSpec
from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.environment import early

_MAX_BACKOFF = 60.0  # seconds between starts that fail


class Warm(msgspec.Struct, frozen=True):
    """An unclaimed sandbox that is ready. `current` False: it is not made as the pool wants it now."""

    name: str
    age: float
    current: bool = True


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as it is.

    `room`: how many unclaimed sandboxes its tenant's quota allows. `surplus_since`: since when it has had
    more than it needs; `retry_at`: no start before.
    """

    spec: WarmPoolSpec
    warm: tuple[Warm, ...] = ()
    starting: int = 0
    assigned: int = 0
    room: int | None = None
    now: float = 0.0
    surplus_since: float | None = None
    retry_at: float = 0.0


class Actions(msgspec.Struct, frozen=True, kw_only=True):
    """How many to start, which to end, when to look again at the latest (None: when something happens)."""

    start: int = 0
    end: tuple[str, ...] = ()
    surplus_since: float | None = None
    look_again_at: float | None = None


def wanted(spec: WarmPoolSpec, assigned: int) -> int:
    """How many unclaimed sandboxes the pool should have.

    With autoscaling so many that those in use are at most `target_utilization` per cent of all.
    """
    count = spec.min_size
    if spec.auto_scaling:
        share = min(max(spec.target_utilization, 1), 100) / 100
        count = max(count, math.ceil(assigned / share) - assigned)
    return min(count, spec.max_size) if spec.max_size else count


def plan(observed: Observed) -> Actions:
    """Never over max_size; not below what is wanted; those too old or of an old make are replaced."""
    spec, now = observed.spec, observed.now
    want = wanted(spec, observed.assigned)
    if observed.room is not None:
        want = min(want, observed.room)
    fresh = [each for each in observed.warm if each.current and each.age < spec.ttl]
    aged = [each for each in observed.warm if each.current and each.age >= spec.ttl]
    end = [each.name for each in observed.warm if not each.current]

    missing = max(0, want - len(fresh) - observed.starting)
    room = _room(spec, len(observed.warm) - len(end) + observed.starting)
    if len(fresh) >= want:  # replaced
        end += [each.name for each in aged]
    elif missing > room:  # no room for a replacement beside the old one
        end += [each.name for each in _oldest(aged, missing - room)]
        room = missing

    surplus = max(0, len(fresh) + observed.starting - want)
    surplus_since = (
        (observed.surplus_since if observed.surplus_since is not None else now) if surplus else None
    )
    delay = spec.scale_down_delay if spec.auto_scaling else 0
    if surplus_since is not None and now - surplus_since >= delay:
        end += [each.name for each in _oldest(fresh, min(surplus, len(fresh)))]

    start = min(missing, room) if now >= observed.retry_at else 0
    times = [now + spec.ttl - each.age for each in fresh]
    if surplus_since is not None:
        times.append(surplus_since + delay)
    if missing and not start:
        times.append(observed.retry_at)
    later = [time for time in times if time > now]
    return Actions(
        start=start,
        end=tuple(end),
        surplus_since=surplus_since,
        look_again_at=min(later) if later else None,
    )


def _room(spec: WarmPoolSpec, present: int) -> int:
    return max(0, spec.max_size - present) if spec.max_size else 1_000_000


def _oldest(warm: Iterable[Warm], count: int) -> list[Warm]:
    return sorted(warm, key=lambda each: each.age, reverse=True)[:count]


def backoff(failures: int) -> float:
    """Seconds to wait after so many starts in a row that failed."""
    return min(_MAX_BACKOFF, 0.5 * 2.0**failures) if failures else 0.0


def misfit(spec: SandboxSpec, runtime: str, pool: WarmPoolSpec, pool_runtime: str) -> str | None:
    """Why a pool cannot serve a request, in words for the person who asked; None when it can."""
    if not pool.serves(spec.tenant):
        return "there is no warm pool"  # other tenants' pools are not spoken of
    if runtime != pool_runtime:
        return f"no warm pool has the runtime {runtime}"
    if spec.security_level != pool.security_level:
        return f"no warm pool has the security level {spec.security_level}"
    if not spec.resources.fits(pool.resources):
        return f"more resources than those of pool {pool.name}"
    if spec.warm_pool is None and pool.has_code and not pool.trusted:
        return f"the pool {pool.name} preloads its owner's code; ask for it by name (warmPool) to get that"
    return None


def cold_reason(spec: SandboxSpec, misfits: Sequence[str | None]) -> str | None:
    """Why a request goes cold whatever is ready, None when a pool could serve it.

    `misfits` are the pools' own reasons, as `misfit` gives them.
    """
    if not spec.use_warm_pool:
        return "the request asked for no warm pool"
    if (reason := early_reason(spec)) is not None:
        return reason
    if not misfits:
        return "there is no warm pool"
    if all(reason is not None for reason in misfits):
        ranked = sorted((reason for reason in misfits if reason is not None), key=_nearness)
        return ranked[0]
    return None


def early_reason(spec: SandboxSpec) -> str | None:
    """Why the request's environment makes it cold, None when it does not."""
    names = sorted(early(spec.env))
    return f"environment that only works from a process's start: {', '.join(names)}" if names else None


def named(spec: SandboxSpec, pools: Iterable[WarmPoolSpec]) -> WarmPoolSpec:
    """The pool that a request names: of two with one name its own tenant's. Raises ApiError(not_found)."""
    known = (pool for pool in pools if pool.name == spec.warm_pool and pool.serves(spec.tenant))
    found = min(known, key=lambda pool: pool.tenant != spec.tenant, default=None)
    if found is None:
        raise ApiError(
            "not_found",
            f"there is no warm pool {str(spec.warm_pool)[:64]!r} that you can see; GET /api/v1/warmpools "
            "lists them",
            {"warmPool": str(spec.warm_pool)[:64]},
        )
    return found


def check_named(spec: SandboxSpec, runtime: str, pool: WarmPoolSpec, pool_runtime: str) -> None:
    """Raise ApiError(invalid_request) when the pool that a request names cannot serve it."""
    reason = misfit(spec, runtime, pool, pool_runtime)
    if reason is not None:
        raise ApiError(
            "invalid_request",
            f"warmPool: {pool.name!r} does not fit this request: "
            + _difference(spec, runtime, pool, pool_runtime),
            {"field": "body.warmPool", "warmPool": pool.name},
        )


def _difference(spec: SandboxSpec, runtime: str, pool: WarmPoolSpec, pool_runtime: str) -> str:
    if runtime != pool_runtime:
        return f"its runtime is {pool_runtime}, the request's is {runtime}"
    if spec.security_level != pool.security_level:
        return f"its security level is {pool.security_level}, the request's is {spec.security_level}"
    own, wanted = pool.resources, spec.resources
    return (
        f"its sandboxes have {own.cpu:g} cores, {own.memory} bytes of memory and {own.storage} of storage, "
        f"the request asks for {wanted.cpu:g}, {wanted.memory} and {wanted.storage}"
    )


def _nearness(reason: str) -> int:
    """The reason of the pool that was nearest to fit comes first."""
    for place, word in enumerate(("by name", "resources", "security level", "runtime")):
        if word in reason:
            return place
    return 4
