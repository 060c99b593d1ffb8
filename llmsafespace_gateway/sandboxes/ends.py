"""How sandboxes ended: one place that says so from the first moment, and that stores it in the end.

An end counts from the moment when this process hears of it: the store's queries give the row as ended
(`Store.unwritten`), listeners are told, the quota gets its room back. Writing it down may take longer, when
the database is locked, read-only or out of room: it is tried again until it is written, and the backend keeps
its own record as long (`noted`), so that an end survives this process too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError

from llmsafespace_gateway.backends.base import Ended, SandboxBackend
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.recent import Recent
from llmsafespace_gateway.store import Store, sandboxes
from llmsafespace_gateway.store.engine import Unwritten

log = logging.getLogger(__name__)

AT_ONCE = 2.0  # seconds for the first attempt, so that other ends need not wait for a locked database
AGAIN = (0.5, 5.0)  # seconds between attempts to write an end, at first and at most
_REMEMBERED = 10_000  # ended sandboxes, of which a watch may still tell


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
            await self._backend.noted(ended.sandbox_id)
            return
        if ended.sandbox_id not in self._store.unwritten:
            self._store.unwritten[ended.sandbox_id] = Unwritten(ended.end, ended.message or None, time.time())
            self._on_end(ended)
        under_way = self._retrying is not None and not self._retrying.done()
        if under_way or not await self._write(ended.sandbox_id, AT_ONCE):
            await self._backend.hold_end(ended.sandbox_id)
            self._retry()

    async def stop(self) -> None:
        """Try once more; what is not written then is told again after the next start."""
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.gather(self._retrying, return_exceptions=True)
        for sandbox_id in list(self._store.unwritten):
            if not await self._write(sandbox_id):
                return

    async def _write(self, sandbox_id: str, patience: float | None = None) -> bool:
        end = self._store.unwritten.get(sandbox_id)
        if end is None:
            return True
        try:
            async with asyncio.timeout(patience):
                row = await sandboxes.end(self._store, sandbox_id, end.end, end.message, end.at)
            if row is None and self._making(sandbox_id):
                await self._backend.hold_end(sandbox_id)
                self._store.unwritten.pop(sandbox_id, None)
                return True
            await self._on_written(sandbox_id)
        except (SQLAlchemyError, OSError, ApiError) as error:  # TimeoutError is an OSError
            log.warning("the end of sandbox %s (%s) cannot be written yet: %s", sandbox_id, end.end, error)
            return False
        self._store.unwritten.pop(sandbox_id, None)
        if row is not None:
            self._written.add(sandbox_id)
        await self._backend.noted(sandbox_id)
        return True

    def _retry(self) -> None:
        if self._retrying is None or self._retrying.done():
            self._retrying = asyncio.create_task(self._until_written(), name="ends to be written")

    async def _until_written(self) -> None:
        pause = AGAIN[0]
        while self._store.unwritten:
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN[1])
            for sandbox_id in list(self._store.unwritten):
                if not await self._write(sandbox_id):
                    break
                pause = AGAIN[0]
