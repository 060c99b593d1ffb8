"""The audit log: every decision that changed something, or was refused; written in batches.

Entries wait in memory for EVERY seconds at most, then all that wait are one transaction. When a process is
killed, what waited is lost: refusals for good, while executions get their entries when a gateway starts again
(see services.completion), as their agents know them. So an execution's entry has a mark (see
access.executions), which no two entries have: a request that is sent again through another process of the
gateway leaves no second entry.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from llmsafespace_gateway.access.key_format import ANY_KEY
from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.store import Store, audit
from llmsafespace_gateway.store.rows import AuditRow

log = logging.getLogger(__name__)

EVERY = 0.1  # seconds that an entry waits, so that it is written within twice that
RETRY = 0.5  # seconds, while the store cannot be written
SAME_FOR = 3600.0  # seconds after which a request that is sent again counts as a new one
BATCH = 500
FORGET_AT_ONCE = 200
FORGET_PAUSE = 0.05  # seconds, while there is more to forget
FORGET_EVERY = 600.0  # seconds
LOOK_AT_ONCE = 5_000  # entries that one look walks past
LOOK_PAUSE = 0.005
MAX_WAITING = 20_000
MAX_TEXT = 256

Who = tuple[str | None, str | None, str | None]  # tenant, a user's id, a key's id
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
    """Entries wait in memory until `flush`. `start` calls it EVERY seconds while something waits.

    `on_written` hears of the entries that were written, each once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, AuditRow] = {}  # by id, oldest first
        self._again: set[str] = set()  # of those: executions that run even if their id ran before
        self._counts: dict[str, Callable[[], None]] = {}
        self._withdrawn: dict[str | None, list[str]] = {}
        self._lost = 0
        self._writing = asyncio.Lock()
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_written: Callable[[list[AuditRow]], Awaitable[None]] | None = None

    def start(self) -> None:
        """Write in the background from now on."""
        self._task = asyncio.create_task(self._write_on(), name="audit log")

    async def stop(self) -> None:
        """Write what waits, for the last time. Raises the store's error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush()

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
        who: Who,
        action: str,
        target: str,
        outcome: str,
        details: Mapping[str, Any],
        at: float | None = None,
        execution: str | None = None,
    ) -> AuditRow:
        """Note a decision about what belongs to `who`: a tenant, a user's id, a key's id."""
        tenant, user_id, key_id = who
        row = AuditRow(
            id=audit.new_id(),
            at=time.time() if at is None else at,
            user_id=user_id,
            tenant=tenant,
            key_id=key_id,
            action=text(action)[:64],
            target=text(target),
            outcome=text(outcome)[:32],
            details=harmless(details),
            execution=execution,
        )
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
        else:
            self._waiting[row.id] = row
            self._some.set()
        return row

    def add_execution(
        self,
        who: Who,
        action: str,
        target: str,
        details: Mapping[str, Any],
        *,
        mark: str,
        again: bool,
        count: Callable[[], None],
        at: float | None = None,
    ) -> AuditRow:
        """Note that an execution was accepted: once for its mark, or each time where `again` is true.

        `count` is called when the entry has been written, and not where the execution had one.
        """
        row = self.add_for(who, action, target, "ok", details, at, mark)
        if row.id not in self._waiting:
            count()
            return row
        self._counts[row.id] = count
        if again:
            self._again.add(row.id)
        return row

    def withdraw(self, row: AuditRow) -> None:
        """What an entry tells of did not happen: it is not written, or deleted where it has been."""
        if self._waiting.pop(row.id, None) is None or self._writing.locked():
            self._withdrawn.setdefault(row.tenant, []).append(row.id)
            self._some.set()
        self._counts.pop(row.id, None)
        self._again.discard(row.id)

    async def flush(self) -> None:
        """Write what waits, in order. What cannot be written waits on; raises the store's error."""
        async with self._writing:
            while batch := list(itertools.islice(self._waiting.values(), BATCH)):
                added = await audit.append(self._store, batch, time.time() - SAME_FOR, self._again)
                self._written(batch, added)
                if self.on_written is not None:
                    await self.on_written(added)
            while self._withdrawn:
                tenant, ids = next(iter(self._withdrawn.items()))
                await audit.withdraw(self._store, tenant, ids[:BATCH])
                del ids[:BATCH]
                if not ids:
                    del self._withdrawn[tenant]
        if self._lost:
            log.error("%d audit entries were lost while the store could not be written", self._lost)
            self._lost = 0

    def _written(self, batch: list[AuditRow], added: list[AuditRow]) -> None:
        new = {row.id for row in added}
        for row in batch:
            self._waiting.pop(row.id, None)
            self._again.discard(row.id)
            count = self._counts.pop(row.id, None)
            if count is not None and row.id in new:
                count()

    async def _write_on(self) -> None:
        failing = False
        while True:
            await self._some.wait()
            await asyncio.sleep(RETRY if failing else EVERY)
            self._some.clear()
            try:
                await self.flush()
                failing = False
            except Exception:
                self._some.set()
                if not failing:
                    log.exception("the audit log cannot be written; its entries wait")
                failing = True


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
