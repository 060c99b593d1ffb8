"""Who may start a sandbox now: a few at once, people before pools, and nobody held up by one that hangs.

* More starts at once than the machine has processors for make each of them slower and none sooner.
* Whoever waits for a sandbox goes before pools, which refill in what is left; one of a pool that has waited
  for `PATIENCE` gets the next turn all the same, so that pools are refilled under lasting load too.
* A start that takes longer than `SLOW` (a preload script that hangs) gives its turn to others and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator

import msgspec

SLOW = 8.0  # seconds after which a start counts no more
PATIENCE = 5.0  # seconds that a pool's start gives way to people's


class _Waiting(msgspec.Struct, eq=False):
    turn: asyncio.Future[None]
    since: float


class Starts:
    """Turns to start a sandbox, `at_once` of them."""

    def __init__(self, at_once: int | None = None) -> None:
        self._free = at_once or max(4, 2 * (os.cpu_count() or 1))
        self._people: deque[_Waiting] = deque()
        self._pools: deque[_Waiting] = deque()

    @contextlib.asynccontextmanager
    async def turn(self, *, pool: bool = False) -> AsyncIterator[bool]:
        """One turn, given back on leaving or when it has lasted `SLOW`; yields whether there was a wait."""
        waited = await self._wait(self._pools if pool else self._people)
        given_back = False

        def give_back() -> None:
            nonlocal given_back
            if not given_back:
                given_back = True
                self._free += 1
                self._grant()

        timer = asyncio.get_running_loop().call_later(SLOW, give_back)
        try:
            yield waited
        finally:
            timer.cancel()
            give_back()

    async def _wait(self, queue: deque[_Waiting]) -> bool:
        loop = asyncio.get_running_loop()
        mine = _Waiting(loop.create_future(), loop.time())
        queue.append(mine)
        self._grant()
        if mine.turn.done():
            return False
        try:
            await mine.turn
        except asyncio.CancelledError:
            if mine.turn.done() and not mine.turn.cancelled():  # it was granted in this very moment
                self._free += 1
                self._grant()
            else:
                with contextlib.suppress(ValueError):  # a grant has passed it over
                    queue.remove(mine)
            raise
        return True

    def _grant(self) -> None:
        while self._free and (self._people or self._pools):
            overdue = bool(self._pools) and self._overdue(self._pools[0])
            queue = self._pools if overdue or not self._people else self._people
            waiting = queue.popleft()
            if not waiting.turn.done():  # one that was cancelled is in its queue until its task runs
                self._free -= 1
                waiting.turn.set_result(None)

    def _overdue(self, waiting: _Waiting) -> bool:
        return asyncio.get_running_loop().time() - waiting.since > PATIENCE
