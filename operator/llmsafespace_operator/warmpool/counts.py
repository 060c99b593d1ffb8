"""Counts the WarmPods of a pool by their state."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from llmsafespace_kube.resources.types import WarmPod


class Counts(msgspec.Struct, frozen=True):
    """Numbers of WarmPods: ready and unclaimed, claimed, and not ready yet."""

    available: int = 0
    assigned: int = 0
    pending: int = 0


def count(members: Iterable[WarmPod]) -> Counts:
    """Count a pool's WarmPods. `members` must not have any that is being deleted."""
    available = assigned = pending = 0
    for one in members:
        if one.spec.claim is not None:
            assigned += 1
        elif one.status.phase == "Ready":
            available += 1
        else:
            pending += 1
    return Counts(available, assigned, pending)
