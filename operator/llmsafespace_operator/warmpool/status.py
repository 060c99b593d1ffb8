"""What a WarmPool's status says: a pure function of its WarmPods and of what is known of its starts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from llmsafespace_operator.resources import names
from llmsafespace_operator.resources.conditions import condition, merged
from llmsafespace_operator.resources.kubernetes import Condition
from llmsafespace_operator.resources.types import WarmPool, WarmPoolStatus
from llmsafespace_operator.warmpool.counts import Counts


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a pool. `unavailable`: why no pod can be made; `trouble`: why starts fail."""

    counts: Counts
    desired: int = 0
    limited: bool = False
    unavailable: str = ""
    trouble: str = ""
    problems: tuple[str, ...] = ()


def status(pool: WarmPool, known: Known, scaled: bool, now: datetime) -> WarmPoolStatus:
    """The status to be written; `scaled`: the size that the pool is kept at has just changed."""
    counts, old = known.counts, pool.status
    generation = pool.metadata.generation
    ready = verdict(known, now, generation)
    # Unclaimed pods only: a claimed one has its sandbox's label.
    selector = f"{names.POOL}={pool.metadata.name},!{names.SANDBOX_ID}"
    return WarmPoolStatus(
        available_pods=counts.available,
        assigned_pods=counts.assigned,
        pending_pods=counts.pending,
        replicas=counts.available + counts.pending,
        selector=selector,
        last_scale_time=now if scaled or old.last_scale_time is None else old.last_scale_time,
        observed_generation=generation,
        conditions=merged(old.conditions, ready),
    )


def verdict(known: Known, now: datetime, generation: int) -> Condition:
    """The condition Ready: true while a claim can be served; the reason says what is amiss all the same."""
    counts = known.counts
    serves = counts.available > 0 or known.desired == 0
    if known.unavailable:
        reason, message = "RuntimeUnavailable", known.unavailable
    elif known.trouble:
        reason, message = "StartFailed", known.trouble
    elif not serves:
        reason, message = "Filling", f"0 of {known.desired} warm pods are ready"
    elif known.limited:
        reason, message = "AtMaximum", f"the load wants more than the {known.desired} that maxSize allows"
    elif known.problems:
        reason, message = "PreloadFailed", "; ".join(known.problems)
    else:
        reason, message = "PoolReady", "Warm pool is ready"
    return condition("Ready", serves, reason, message, now=now, generation=generation)


def urgent(old: WarmPoolStatus, new: WarmPoolStatus) -> bool:
    """Whether a change must not wait: the pool serves again, or serves no longer and is not just empty."""
    before, after = _ready(old), _ready(new)
    if before is None or after is None:
        return True
    return before.status != after.status and after.reason != "Filling"


def body(wanted: WarmPoolStatus) -> dict[str, Any]:
    """For a merge patch, in which what is left out would stay as it was: zeros are said."""
    counts = dict.fromkeys(("availablePods", "assignedPods", "pendingPods", "replicas"), 0)
    return {**counts, **msgspec.to_builtins(wanted)}


def _ready(known: WarmPoolStatus) -> Condition | None:
    return next((one for one in known.conditions if one.type == "Ready"), None)
