"""The status of a WarmPool: a pure function of its WarmPods and of what is known about their starts."""

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
    """What is known about a pool.

    `unavailable`: why no pod can be created. `trouble`: why starts fail. `crowded`: why no node takes its
    pods. `yielding`: it creates no pods, because sandboxes wait for room. `problems`: of preloading.
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
    """Return the status of a pool; `scaled`: its desired size has just changed."""
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
    """Return the condition Ready: whether a claim can be served now."""
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
    """Return the condition Filled: whether the desired number of pods is ready, and if not, why."""
    full = not known.unavailable and known.counts.available >= known.desired
    reason, message = ("Filled", "") if full else _lack(known)
    return condition("Filled", full, reason, message, now=now, generation=generation)


def serves_defaults(given: PoolResources, now: datetime, generation: int) -> Condition:
    """Return the condition ServesDefaults: whether a request with default resources fits the pool's pods."""
    message = smaller_than_default(given)
    reason = "SmallerThanDefault" if message else "LargeEnough"
    return condition("ServesDefaults", not message, reason, message, now=now, generation=generation)


def preloaded(known: Known, now: datetime, generation: int) -> Condition:
    """Return the condition Preloaded: whether one examined pod preloaded all packages and scripts."""
    message = "; ".join(known.problems)
    reason = "PreloadFailed" if message else "Preloaded"
    return condition("Preloaded", not message, reason, message, now=now, generation=generation)


def _lack(known: Known) -> tuple[str, str]:
    """Return why fewer pods are ready than desired: a condition's reason and message."""
    if known.unavailable:
        return "RuntimeUnavailable", known.unavailable
    if known.yielding:
        return (
            "SandboxesWait",
            "the pool creates no warm pods now, because no node has room for a waiting sandbox's pod",
        )
    if known.crowded:
        return UNSCHEDULABLE, f"the pool creates no more warm pods: {known.crowded}"
    if known.trouble:
        return "StartFailed", known.trouble
    return "Filling", f"{known.counts.available} of {known.desired} warm pods are ready"


def urgent(old: WarmPoolStatus, new: WarmPoolStatus) -> bool:
    """Whether the status must be written at once: Ready has changed, and the pool is not just filling."""
    before, after = _ready(old), _ready(new)
    if before is None or after is None:
        return True
    return before.status != after.status and after.reason != "Filling"


def body(wanted: WarmPoolStatus) -> dict[str, Any]:
    """Return the status for a merge patch, with zeros: a missing field would keep its old value."""
    counts = dict.fromkeys(("availablePods", "assignedPods", "pendingPods", "replicas"), 0)
    return {**counts, **msgspec.to_builtins(wanted)}


def _ready(known: WarmPoolStatus) -> Condition | None:
    return next((one for one in known.conditions if one.type == "Ready"), None)
