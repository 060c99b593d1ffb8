"""Forked children (multiprocessing, os.fork): what they must not inherit from the kernel."""

from __future__ import annotations

import os
import weakref
from typing import Any


def renewed_in_forks(owner: Any, attribute: str, make: Any) -> None:
    """Make `owner.attribute` anew in each child: a lock may be held by a thread that is not there."""
    reference = weakref.ref(owner)

    def renew() -> None:
        alive = reference()
        if alive is not None:
            setattr(alive, attribute, make())

    os.register_at_fork(after_in_child=renew)
