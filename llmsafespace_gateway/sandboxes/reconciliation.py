"""Keeps records and living sandboxes together, whatever gateway or operator died in between."""

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
_SETTLED = 10.0  # a record this old is of a sandbox that every process has heard of


class Reconciliation:
    """A record means that its sandbox was bound: sandboxes without one are adopted or removed.

    `record_end` is called for records whose sandbox is gone, `on_adopted` for those that this process adds.
    """

    def __init__(
        self, store: Store, backend: SandboxBackend, record_end: Callable[[Ended], Awaitable[None]]
    ) -> None:
        self._store = store
        self._backend = backend
        self._record_end = record_end
        self.on_adopted: Callable[[SandboxRow], None] = lambda row: None

    async def run(self) -> None:
        """Reconcile now and then, where others than this process make and end sandboxes."""
        while self._backend.shared:
            await asyncio.sleep(EVERY)
            try:
                await self.once()
            except Exception:
                log.exception("records and sandboxes could not be compared")

    async def once(self) -> None:
        """Compare records and sandboxes. What fails for one of them is told, and left to the next time.

        Raises ApiError when the backend does not say what there is.
        """
        living = await self._backend.living()
        strangers = await self._backend.strangers()
        known = await sandboxes.running_since(self._store, self._backend.name)
        for stranger in strangers:
            sandbox_id = stranger.claim.sandbox_id
            if sandbox_id not in known:
                with _left(sandbox_id, "adopted"):
                    await self.adopt(stranger)
        for place in living:
            if place.sandbox_id not in known and await self._is_orphan(place):
                log.warning("sandbox %s has no record and nobody who waits for it", place.sandbox_id)
                with _left(place.sandbox_id, "ended"):
                    await self._backend.destroy(place.sandbox_id, "lost")
        if self._backend.shared:
            there = {place.sandbox_id for place in living} | {each.claim.sandbox_id for each in strangers}
            settled = time.time() - _SETTLED
            await self._record_ends(
                sandbox_id
                for sandbox_id, since in known.items()
                if sandbox_id not in there and since < settled
            )

    async def adopt(self, stranger: Stranger) -> None:
        """Record a sandbox that was made past the gateway, unless another process has done so."""
        spec, claim = stranger.spec, stranger.claim
        request = CreateSandbox(
            runtime=spec.runtime,
            security_level=spec.security_level,
            timeout=spec.limits.timeout,
            resources=spec.resources,
            egress=spec.egress,
            use_warm_pool=spec.use_warm_pool,
            idle_timeout=spec.limits.idle_timeout,
            max_lifetime=spec.limits.max_lifetime,
        )
        owner = await self._owner(spec.owner, spec.tenant)
        row = sandbox_row(owner, request, claim, self._backend.name)
        row = msgspec.structs.replace(row, created_at=stranger.started_at)
        try:
            await sandboxes.insert(self._store, row, kernel_row(request, claim, stranger.context_id))
        except ApiError as error:
            if error.code != "conflict":
                raise
            return
        self.on_adopted(row)
        ended = await self._backend.fate(row.id)
        if ended is not None:
            await self._record_end(ended)

    async def _owner(self, named: str, tenant: str) -> Owner:
        """Whose it is, by id or name. Who is not known here owns nothing: then admins see it."""
        await users.ensure_tenant(self._store, tenant)
        user = await users.get(self._store, tenant, named)
        user = user or await users.by_name(self._store, tenant, named)
        return Owner(user.id if user is not None else "", tenant)

    async def _is_orphan(self, place: Place) -> bool:
        """Whether nobody is making it, and nobody ever knew it: a store that was lost knew more than this."""
        if not self._backend.shared:
            return True
        since = await users.first_created(self._store)
        old = place.started_at < time.time() - ORPHAN_GRACE
        return old and since is not None and place.started_at > since

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
    except ApiError as error:
        log.warning("sandbox %s could not be %s now: %s", sandbox_id, undone, error)
