"""Keeps records and living sandboxes together, whatever gateway, operator or database died in between.

They are compared both ways, at the start and every minute:

* A living sandbox without a record is adopted when it was bound (the store has lost it, or it was made with
  kubectl), and ended when it never was: then its maker died before anybody heard of it.
* A living sandbox whose record says that it has ended is ended: nobody can reach it.
* A record whose sandbox is gone ends with what its backend knows of it.

An empty store never ends a sandbox that somebody may still use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import msgspec

from llmsafespace_gateway.backends.base import Ended, Place, SandboxBackend, Stranger
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.sandboxes.rows import kernel_row, sandbox_row
from llmsafespace_gateway.store import Store, sandboxes, users
from llmsafespace_gateway.store.rows import SandboxRow

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds
ORPHAN_GRACE = 300.0  # so long another gateway process may take to make a sandbox and record it
DEFAULT_LIFETIME = 86400.0  # seconds, for what was made without one
_SETTLED = 10.0  # a record this old is of a sandbox that every process has heard of


class Reconciliation:
    """A record means that its sandbox was bound: sandboxes without one are adopted or removed.

    `record_end` is called for records whose sandbox is gone, `on_adopted` for those that this process adds.
    `making` tells of a sandbox whose record this process is still to write.
    """

    def __init__(
        self,
        store: Store,
        backend: SandboxBackend,
        record_end: Callable[[Ended], Awaitable[None]],
        making: Callable[[str], bool] = lambda sandbox_id: False,
    ) -> None:
        self._store = store
        self._backend = backend
        self._record_end = record_end
        self._making = making
        self.on_adopted: Callable[[SandboxRow], None] = lambda row: None

    async def run(self) -> None:
        """Reconcile now and then."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.once()
            except Exception as error:
                log.warning("records and sandboxes could not be compared: %s", error)

    async def once(self, settled: float = _SETTLED) -> None:
        """Compare records and sandboxes. What fails for one of them is told, and left to the next time.

        Records younger than `settled` seconds are left alone, where another process may have written them.
        Raises ApiError when the backend does not say what there is.
        """
        living = await self._backend.living()
        strangers = {each.claim.sandbox_id: each for each in await self._backend.strangers()}
        known = await sandboxes.running_since(self._store, self._backend.name)
        adopted = 0
        for sandbox_id, stranger in strangers.items():
            if sandbox_id not in known:
                with _left(sandbox_id, "adopted"):
                    adopted += await self.adopt(stranger)
        if adopted:
            log.warning("%d living sandboxes were not in the database: they were adopted", adopted)
        for place in living:
            if place.sandbox_id not in known and place.sandbox_id not in strangers:
                with _left(place.sandbox_id, "ended"):
                    await self._end_orphan(place)
        there = {place.sandbox_id for place in living} | strangers.keys()
        before = time.time() - (settled if not self._backend.shared else _SETTLED)
        await self._record_ends(
            sandbox_id for sandbox_id, since in known.items() if sandbox_id not in there and since <= before
        )

    async def adopt(self, stranger: Stranger) -> bool:
        """Record a living sandbox that has no record; False when it has one.

        One whose record says that it has ended is ended.
        """
        spec, claim = stranger.spec, stranger.claim
        request = CreateSandbox(
            runtime=spec.runtime,
            security_level=spec.security_level,
            timeout=spec.limits.timeout,
            resources=spec.resources,
            egress=spec.egress,
            use_warm_pool=spec.use_warm_pool,
            idle_timeout=spec.limits.idle_timeout,
            max_lifetime=spec.limits.max_lifetime or DEFAULT_LIFETIME,
            language=stranger.language,
            metadata=stranger.metadata,
        )
        owner = await self._owner(stranger)
        row = sandbox_row(owner, request, claim, self._backend.name)
        row = msgspec.structs.replace(row, created_at=stranger.started_at)
        try:
            await sandboxes.insert(self._store, row, kernel_row(request, claim, stranger.context_id))
        except ApiError as error:
            if error.code != "conflict":
                raise
            there = await sandboxes.get(self._store, row.id)
            if there is not None and there.state == "ended" and not self._backend.shared:
                await self._backend.destroy(row.id, there.end or "lost")
            return False
        log.warning("sandbox %s of %s was adopted", row.id, row.owner or "nobody known")
        self.on_adopted(row)
        ended = await self._backend.fate(row.id)
        if ended is not None:
            await self._record_end(ended)
        return True

    async def _owner(self, stranger: Stranger) -> Owner:
        """Whose it is. Who is not known here owns nothing, or keeps their id: either way admins see it.

        An id that a gateway has written is never taken for a name, which somebody else may have chosen since.
        """
        named, tenant = stranger.spec.owner, stranger.spec.tenant
        await users.ensure_tenant(self._store, tenant)
        if stranger.owner_is_id:
            return Owner(named, tenant)
        user = await users.get(self._store, tenant, named)
        user = user or await users.by_name(self._store, tenant, named)
        return Owner(user.id if user is not None else "", tenant)

    async def _end_orphan(self, place: Place) -> None:
        """End a sandbox that was never bound, unless somebody may still be making it.

        Where the store is shared, a store that was lost knew more than this one does.
        """
        if self._making(place.sandbox_id):
            return
        if self._backend.shared:
            since = await users.first_created(self._store)
            old = place.started_at < time.time() - ORPHAN_GRACE
            if not old or since is None or place.started_at <= since:
                return
        elif (row := await sandboxes.get(self._store, place.sandbox_id)) is not None and row.state != "ended":
            return  # it was made since we looked
        log.warning("sandbox %s has no record and nobody who waits for it", place.sandbox_id)
        await self._backend.destroy(place.sandbox_id, "lost")

    async def _record_ends(self, sandbox_ids: Iterable[str]) -> None:
        for sandbox_id in sandbox_ids:
            with _left(sandbox_id, "looked at"):
                ended = await self._backend.fate(sandbox_id)
                if ended is not None:
                    await self._record_end(ended)


@contextlib.contextmanager
def _left(sandbox_id: str, undone: str) -> Iterator[None]:
    """The others, and the gateway's start, need not wait until the backend answers for this one."""
    try:
        yield
    except Exception as error:
        log.warning("sandbox %s could not be %s now: %s", sandbox_id, undone, error)
