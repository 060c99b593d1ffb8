"""How many WarmPods a pool has, by what they are good for."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from llmsafespace_kube.resources.types import WarmPod


class Counts(msgspec.Struct, frozen=True):
    """Living WarmPods: ready and unclaimed, claimed, on their way."""

    available: int = 0
    assigned: int = 0
    pending: int = 0


def count(members: Iterable[WarmPod]) -> Counts:
    """The counts of a pool's living WarmPods."""
    available = assigned = pending = 0
    for one in members:
        if one.spec.claim is not None:
            assigned += 1
        elif one.status.phase == "Ready":
            available += 1
        else:
            pending += 1
    return Counts(available, assigned, pending)
