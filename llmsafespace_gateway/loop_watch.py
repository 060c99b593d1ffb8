"""Tells who holds the event loop: for tests, and for those who look for a fault.

A thread asks the loop for a sign of life again and again, and the loop says how much processor time it has
used until then: not the time on the clock, which says nothing on a busy machine. The loop reads its clock
itself, as the thread may learn of the sign of life much later.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback

log = logging.getLogger("llmsafespace.loop")

_PAUSE = 0.002
_DEEPEST = 6  # frames that are written down


class LoopWatch:
    """Watches the running loop; what keeps it for more than `limit` seconds of processor time is logged."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._ident = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._ident)
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="loop watch", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            alive = threading.Event()
            ended: list[float] = []
            began = time.clock_gettime(self._clock)
            try:
                self._loop.call_soon_threadsafe(_sign_of_life, ended, alive)
            except RuntimeError:  # the loop is closed
                return
            where = ""
            while not alive.wait(_PAUSE):
                if not where and time.clock_gettime(self._clock) - began > self._limit / 2:
                    where = self._place()
            taken = ended[0] - began
            if taken > self._limit:
                fields = {"milliseconds": round(taken * 1000, 1), "where": where}
                log.warning("the event loop was held", extra={"fields": fields})
            time.sleep(_PAUSE)

    def _place(self) -> str:
        frame = sys._current_frames().get(self._ident)
        calls = traceback.extract_stack(frame)[-_DEEPEST:] if frame is not None else []
        return " < ".join(f"{each.name} ({each.filename}:{each.lineno})" for each in reversed(calls))


def _sign_of_life(ended: list[float], alive: threading.Event) -> None:
    ended.append(time.thread_time())
    alive.set()
