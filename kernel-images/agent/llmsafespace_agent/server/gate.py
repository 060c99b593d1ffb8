"""Holds executions back until what they need (the packages of the first bind) is there."""

from __future__ import annotations

from collections.abc import Callable


class Gate:
    """Open unless somebody keeps it closed. `on_open` callbacks are called each time it opens."""

    def __init__(self) -> None:
        self._keepers = 0
        self._on_open: list[Callable[[], None]] = []

    @property
    def open(self) -> bool:
        """Whether executions may go to their kernels."""
        return self._keepers == 0

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the gate opens."""
        self._on_open.append(callback)

    def unwatch(self, callback: Callable[[], None]) -> None:
        """Stop calling `callback`."""
        if callback in self._on_open:
            self._on_open.remove(callback)

    def close(self) -> None:
        """Keep it closed until the matching `release`."""
        self._keepers += 1

    def release(self) -> None:
        """Undo one `close`."""
        self._keepers -= 1
        if self._keepers == 0:
            for callback in tuple(self._on_open):
                callback()
