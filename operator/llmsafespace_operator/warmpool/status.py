"""What a WarmPool's status says: a pure function of its WarmPods and of what is known of its starts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from llmsafespace_kube.claims.choice import smaller_than_default
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.conditions import condition, merged
from llmsafespace_kube.resources.kubernetes import Condition
from llmsafespace_kube.resources.names import UNSCHEDULABLE
from llmsafespace_kube.resources.types import PoolResources, WarmPool, WarmPoolStatus
from llmsafespace_operator.warmpool.counts import Counts


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a pool. `unavailable`: why no pod can be made; `trouble`: why starts fail.

    `crowded`: why no node takes its pods; `yielding`: it makes none, as sandboxes wait for room.
    """

    counts: Counts
    desired: int = 0
    limited: bool = False
    unavailable: str = ""
    trouble: str = ""
    crowded: str = ""
    yielding: bool = False
    problems: tuple[str, ...] = ()


def status(pool: WarmPool, known: Known, scaled: bool, now: datetime) -> WarmPoolStatus:
    """The status to be written; `scaled`: the size that the pool is kept at has just changed."""
    counts, old = known.counts, pool.status
    generation = pool.metadata.generation
    conditions = [verdict(known, now, generation), filled(known, now, generation)]
    conditions.append(serves_defaults(pool.spec.resources, now, generation))
    if pool.spec.preload_packages or pool.spec.preload_scripts:
        conditions.append(preloaded(known, now, generation))
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
        conditions=merged(old.conditions, *conditions),
    )


def verdict(known: Known, now: datetime, generation: int) -> Condition:
    """The condition Ready: whether a claim can be served now. Why the pool is not full says `Filled`."""
    counts = known.counts
    serves = not known.unavailable and (counts.available > 0 or known.desired == 0)
    if not serves:
        reason, message = _lack(known)
    elif known.limited:
        reason, message = "AtMaximum", f"the load wants more than the {known.desired} that maxSize allows"
    elif counts.available < known.desired:
        reason, message = "PoolReady", f"{counts.available} of {known.desired} warm pods are ready"
    else:
        reason, message = "PoolReady", "Warm pool is ready"
    return condition("Ready", serves, reason, message, now=now, generation=generation)


def filled(known: Known, now: datetime, generation: int) -> Condition:
    """The condition Filled: whether as many are ready as the pool is kept at, and what keeps the others."""
    full = not known.unavailable and known.counts.available >= known.desired
    reason, message = ("Filled", "") if full else _lack(known)
    return condition("Filled", full, reason, message, now=now, generation=generation)


def serves_defaults(given: PoolResources, now: datetime, generation: int) -> Condition:
    """The condition ServesDefaults: whether a request that names no resources fits its pods."""
    message = smaller_than_default(given)
    reason = "SmallerThanDefault" if message else "LargeEnough"
    return condition("ServesDefaults", not message, reason, message, now=now, generation=generation)


def preloaded(known: Known, now: datetime, generation: int) -> Condition:
    """The condition Preloaded: whether all packages and scripts were, in the pod that was asked."""
    message = "; ".join(known.problems)
    reason = "PreloadFailed" if message else "Preloaded"
    return condition("Preloaded", not message, reason, message, now=now, generation=generation)


def _lack(known: Known) -> tuple[str, str]:
    """Why there are not as many as wanted: a word and a sentence."""
    if known.unavailable:
        return "RuntimeUnavailable", known.unavailable
    if known.yielding:
        return (
            "SandboxesWait",
            "no node takes the pod of a sandbox that somebody waits for: no pods are made now",
        )
    if known.crowded:
        return UNSCHEDULABLE, f"no more pods are made: {known.crowded}"
    if known.trouble:
        return "StartFailed", known.trouble
    return "Filling", f"{known.counts.available} of {known.desired} warm pods are ready"


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
