"""Forked children must not draw the same random numbers, unless a preload script meant them to."""

from __future__ import annotations

import random
import sys
from typing import Any


class Randomness:
    """The state of the global generators as their import left it, and as the preload scripts left it.

    Python itself seeds `random` anew in each forked child, a script's seed included; numpy never does.
    """

    def __init__(self) -> None:
        self._fresh: Any = None
        self._left: Any = None
        self._numpy: str | None = None

    def record(self) -> None:
        """Call after the imports and before the preload scripts."""
        self._fresh = random.getstate()
        self._numpy = _numpy_state()

    def settle(self) -> None:
        """Call after the preload scripts."""
        self._left = random.getstate()

    def renew(self) -> None:
        """Call in a child: new seeds where nobody has touched the state; a script's own seed survives."""
        if self._left != self._fresh:
            random.setstate(self._left)
        if self._numpy is not None and _numpy_state() == self._numpy:
            sys.modules["numpy.random"].seed()


def _numpy_state() -> str | None:
    module = sys.modules.get("numpy.random")
    if module is None:
        return None
    name, keys, *rest = module.get_state()
    return repr((name, keys.tobytes(), rest))
