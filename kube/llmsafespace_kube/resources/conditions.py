"""Kubernetes conditions: one for each type, with the time when its status last changed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec

from llmsafespace_kube.resources.kubernetes import Condition

_LONGEST = 1024  # characters of a message


def condition(
    type_: str, true: bool, reason: str, message: str = "", *, now: datetime, generation: int = 0
) -> Condition:
    """Make a condition; `reason` is one CamelCase word, `message` is for people (at most 1024 characters)."""
    return Condition(
        type=type_,
        status="True" if true else "False",
        reason=reason,
        message=message[:_LONGEST],
        last_transition_time=now,
        observed_generation=generation,
    )


def merged(present: Iterable[Condition], *changes: Condition) -> list[Condition]:
    """Return `present` with `changes` merged in by type, in the old order.

    A condition whose status does not change keeps its transition time.
    """
    found = {one.type: one for one in present}
    for change in changes:
        old = found.get(change.type)
        if old is not None and old.status == change.status:
            change = msgspec.structs.replace(change, last_transition_time=old.last_transition_time)
        found[change.type] = change
    return list(found.values())
