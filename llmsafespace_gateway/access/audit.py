"""The audit log: every decision that changed something, or was refused; written in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from llmsafespace_gateway.access.key_format import ANY_KEY
from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.store import Store, audit
from llmsafespace_gateway.store.rows import AuditRow

log = logging.getLogger(__name__)

BATCH = 500
FORGET_AT_ONCE = 200
FORGET_PAUSE = 0.05  # seconds, while there is more to forget
FORGET_EVERY = 600.0  # seconds
LOOK_AT_ONCE = 5_000  # entries that one look walks past
LOOK_PAUSE = 0.005
MAX_WAITING = 20_000
MAX_TEXT = 256
# What people put into a sandbox is theirs: not even a careless caller gets it into the log.
PRIVATE = frozenset(
    {
        "code",
        "content",
        "command",
        "env",
        "files",
        "stdin",
        "secret",
        "token",
        "password",
        "hash",
        "authorization",
    }
)


class AuditLog:
    """Entries wait in memory until `flush`, which is called twice a second and when the gateway drains."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[AuditRow] = []
        self._lost = 0
        self._writing = asyncio.Lock()

    def add(
        self,
        principal: Principal | None,
        action: str,
        target: str,
        outcome: str,
        details: Mapping[str, Any],
    ) -> None:
        """Note a decision; never blocks."""
        who = (principal.tenant, principal.user_id, principal.key_id) if principal else (None, None, None)
        self.add_for(who, action, target, outcome, details)

    def add_for(
        self,
        who: tuple[str | None, str | None, str | None],
        action: str,
        target: str,
        outcome: str,
        details: Mapping[str, Any],
    ) -> None:
        """Note a decision about what belongs to `who`: a tenant, a user's id, a key's id."""
        tenant, user_id, key_id = who
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        self._waiting.append(
            AuditRow(
                id=audit.new_id(),
                at=time.time(),
                user_id=user_id,
                tenant=tenant,
                key_id=key_id,
                action=text(action)[:64],
                target=text(target),
                outcome=text(outcome)[:32],
                details=harmless(details),
            )
        )

    async def flush(self) -> None:
        """Write what waits, in order. What cannot be written waits on; raises the store's error."""
        async with self._writing:
            while self._waiting:
                batch = self._waiting[:BATCH]
                await audit.append(self._store, batch)
                del self._waiting[: len(batch)]
        if self._lost:
            log.error("%d audit entries were lost while the store could not be written", self._lost)
            self._lost = 0


class Retention:
    """Old entries go, and the oldest where there are too many; a little at a time, now and then.

    `most` entries of all tenants together are kept. Where there are more, every tenant keeps an equal share,
    and those that have fewer leave the rest of theirs to the others: a tenant that floods the log loses its
    own entries first.
    """

    def __init__(self, store: Store, age: float, most: int) -> None:
        self._store = store
        self._age = age
        self._most = most
        self._next = 0.0
        self._too_many: list[tuple[str | None, str]] = []  # tenants, and their last entry that goes

    async def apply(self) -> bool:
        """Do a short piece of the work, where it is time to. Returns whether there is more.

        Raises the store's error.
        """
        if self._too_many:
            tenant, last = self._too_many[-1]
            if await audit.forget_of(self._store, tenant, last, FORGET_AT_ONCE) < FORGET_AT_ONCE:
                self._too_many.pop()
            return True
        if time.monotonic() < self._next:
            return False
        if await audit.forget_before(self._store, time.time() - self._age, FORGET_AT_ONCE):
            return True
        self._too_many = await self._look()
        self._next = time.monotonic() + FORGET_EVERY
        return bool(self._too_many)

    async def _look(self) -> list[tuple[str | None, str]]:
        counts: dict[str | None, int] = {None: await self._count(None)}
        tenant: str | None = ""
        while (tenant := await audit.next_tenant(self._store, tenant or "")) is not None:
            counts[tenant] = await self._count(tenant)
        share = fair_share(counts.values(), self._most)
        if share is None:
            return []
        return [
            (tenant, last)
            for tenant, count in counts.items()
            if count > share and (last := await self._entry(tenant, count - share)) is not None
        ]

    async def _count(self, tenant: str | None) -> int:
        count, last = 0, ""
        while (found := await audit.step(self._store, tenant, last, LOOK_AT_ONCE)) is not None:
            count, last = count + LOOK_AT_ONCE, found
            await asyncio.sleep(LOOK_PAUSE)
        return count + await audit.count_after(self._store, tenant, last)

    async def _entry(self, tenant: str | None, number: int) -> str | None:
        """The id of a tenant's entry of this number, oldest first."""
        found: str | None = ""
        while number > 0 and found is not None:
            found = await audit.step(self._store, tenant, found, min(number, LOOK_AT_ONCE))
            number -= LOOK_AT_ONCE
            await asyncio.sleep(LOOK_PAUSE)
        return found


def fair_share(counts: Iterable[int], room: int) -> int | None:
    """How many each may keep, so that all together keep `room`; None when there are no more than that."""
    ordered = sorted(counts)
    for index, count in enumerate(ordered):
        share = room // (len(ordered) - index)
        if count > share:
            return max(1, share)
        room -= count
    return None


def harmless(details: Mapping[str, Any]) -> dict[str, Any]:
    """`details` without what must never be logged: private fields are named only, keys and length are cut."""
    return {name[:64]: "…" if name.lower() in PRIVATE else _plain(value) for name, value in details.items()}


def text(value: str) -> str:
    """A text as the log may have it."""
    return ANY_KEY.sub("lsp_…", value)[:MAX_TEXT]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return harmless({str(name): inner for name, inner in value.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in list(value)[:64]]
    return text(str(value))
