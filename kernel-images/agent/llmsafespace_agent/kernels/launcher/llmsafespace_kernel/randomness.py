"""Forked children must not draw the same random numbers, unless a preload script meant them to."""

from __future__ import annotations

import random
import sys
from typing import Any


class Randomness:
    """The state of the global generators as their import left it."""

    def __init__(self) -> None:
        self._random: Any = None
        self._numpy: str | None = None

    def record(self) -> None:
        """Call after the imports and before the preload scripts."""
        self._random = random.getstate()
        self._numpy = _numpy_state()

    def reseed(self) -> None:
        """Call in a child: new seeds where nobody has touched the state; a script's own seed survives."""
        if random.getstate() == self._random:
            random.seed()
        if self._numpy is not None and _numpy_state() == self._numpy:
            sys.modules["numpy.random"].seed()


def _numpy_state() -> str | None:
    module = sys.modules.get("numpy.random")
    if module is None:
        return None
    name, keys, *rest = module.get_state()
    return repr((name, keys.tobytes(), rest))
