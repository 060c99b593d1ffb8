"""Tells a clock outside the sandbox by when the agent will have ended what runs here with a time limit.

Whoever keeps the sandbox ends it then, unless the agent has taken the moment back: code that slows its agent
down, or stops it, gains nothing. What is told is the earliest moment of all. An earlier one is told before
the code gets to run. A later one, or none, may wait a second, as long as the told one is not near: a stream
of short executions costs a write a second, an idle sandbox nothing.

On the pipe: 8 bytes, little-endian, milliseconds of the monotonic clock; 0 for none.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Hashable

_MAY_WAIT = 1.0
_NEAR = 3.0
_LAST = 2**62  # milliseconds; as good as never


class Deadlines:
    """The moments of everything that runs with a limit; `pipe` None: nobody listens."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe
        self._due: dict[Hashable, int] = {}
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None
        if pipe is not None:
            os.set_inheritable(pipe, False)
            os.set_blocking(pipe, False)

    def set(self, what: Hashable, seconds: float) -> None:
        """`what` will have ended in so many seconds from now. Call before it begins."""
        if self._pipe is None:
            return
        moment = min(_LAST, int((time.monotonic() + seconds) * 1000))
        before = self._due.get(what)
        self._due[what] = moment
        if not self._told or moment < self._told:
            self._tell(moment)
        elif before == self._told:
            self._tell_later()

    def clear(self, what: Hashable) -> None:
        """`what` has ended, or never began."""
        if self._due.pop(what, None) is not None and self._told:
            self._tell_later()

    def _tell_later(self) -> None:
        if self._timer is not None:
            return
        left = self._told / 1000 - time.monotonic()
        if left < _NEAR:
            self._tell_earliest()
        else:
            self._timer = asyncio.get_running_loop().call_later(_MAY_WAIT, self._tell_earliest)

    def _tell_earliest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        earliest = min(self._due.values(), default=0)
        if earliest != self._told:
            self._tell(earliest)

    def _tell(self, moment: int) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, moment.to_bytes(8, "little"))
            self._told = moment
        except BlockingIOError:  # the clock is behind: a later moment must reach it in time, too
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_MAY_WAIT, self._tell_earliest)
        except OSError:  # there is no clock any more
            self._pipe = None
