"""Records how sandboxes ended.

An end counts from the moment when this process hears of it: the store's queries give the row as ended
(`Store.unwritten`), listeners are told, the quota gets its room back. Writing it down may take longer, when
the database is locked, read-only or out of room: it is tried again until it is written, and the backend keeps
its own record as long (`noted`), so that an end survives this process too. An end that cannot be written for
a reason of its own holds up no other.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from llmsafespace_gateway.backends.base import Ended, SandboxBackend
from llmsafespace_gateway.recent import Recent
from llmsafespace_gateway.store import Store, sandboxes
from llmsafespace_gateway.store.engine import Unwritten

log = logging.getLogger(__name__)

AT_ONCE = 2.0  # seconds for the first attempt, so that other ends need not wait for a locked database
AGAIN = (0.5, 5.0)  # seconds between attempts to write an end, at first and at most
_REMEMBERED = 10_000  # ended sandboxes, of which a watch may still tell


class _Outcome(enum.Enum):
    """Of an attempt to write an end."""

    WRITTEN = enum.auto()
    NOT_THIS_ONE = enum.auto()
    NONE_NOW = enum.auto()  # the database refuses: the others would only wait for it as long


class Ends:
    """The ends that this process has heard of.

    `on_end(ended)` is called at once, `on_written(sandbox_id)` when it is written.
    `making(sandbox_id)` tells whether its row is still to be written: such an end is kept for its maker.
    """

    def __init__(
        self,
        store: Store,
        backend: SandboxBackend,
        on_end: Callable[[Ended], None],
        making: Callable[[str], bool],
        on_written: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._backend = backend
        self._on_end = on_end
        self._making = making
        self._on_written = on_written
        self._written = Recent(_REMEMBERED)
        self._retrying: asyncio.Task[None] | None = None

    async def record(self, ended: Ended) -> None:
        """Take note of an end; on return it counts, and is written unless the store cannot do so now."""
        if ended.sandbox_id in self._written:
            await self._note(ended.sandbox_id)
            return
        if ended.sandbox_id not in self._store.unwritten:
            self._store.unwritten[ended.sandbox_id] = Unwritten(ended.end, ended.message or None, time.time())
            self._on_end(ended)
        under_way = self._retrying is not None and not self._retrying.done()
        if under_way or await self._write(ended.sandbox_id, AT_ONCE) is not _Outcome.WRITTEN:
            await self._backend.hold_end(ended.sandbox_id)
            self._retry()

    async def stop(self) -> None:
        """Try once more; what is not written then is told again after the next start."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
        for sandbox_id in list(self._store.unwritten):
            if await self._write(sandbox_id) is _Outcome.NONE_NOW:
                return

    async def _write(self, sandbox_id: str, patience: float | None = None) -> _Outcome:
        end = self._store.unwritten.get(sandbox_id)
        if end is None:
            return _Outcome.WRITTEN
        try:
            async with asyncio.timeout(patience):
                first = await sandboxes.end(self._store, sandbox_id, end.end, end.message, end.at)
            if not first and self._making(sandbox_id):
                await self._backend.hold_end(sandbox_id)
                self._store.unwritten.pop(sandbox_id, None)
                return _Outcome.WRITTEN
            await self._on_written(sandbox_id)
        except Exception as error:
            log.warning("the end of sandbox %s (%s) cannot be written yet: %r", sandbox_id, end.end, error)
            database = isinstance(error, SQLAlchemyError | OSError)  # of which TimeoutError is one
            own = not database or isinstance(error, DataError | IntegrityError)
            return _Outcome.NOT_THIS_ONE if own else _Outcome.NONE_NOW
        self._store.unwritten.pop(sandbox_id, None)
        if first:
            self._written.add(sandbox_id)
        await self._note(sandbox_id)
        return _Outcome.WRITTEN

    async def _note(self, sandbox_id: str) -> None:
        try:
            await self._backend.noted(sandbox_id)
        except Exception as error:  # it is told again after the next start
            log.warning("the backend cannot forget the end of sandbox %s: %r", sandbox_id, error)

    def _retry(self) -> None:
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._until_written(), name="ends to be written")

    async def _until_written(self) -> None:
        pause = AGAIN[0]
        while self._store.unwritten:
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])
            for sandbox_id in list(self._store.unwritten):
                outcome = await self._write(sandbox_id)
                if outcome is _Outcome.WRITTEN:
                    pause = AGAIN[0]
                elif outcome is _Outcome.NONE_NOW:
                    # The next attempt begins with another one: perhaps it was this one after all.
                    end = self._store.unwritten.pop(sandbox_id, None)
                    if end is not None:
                        self._store.unwritten[sandbox_id] = end
                    break
