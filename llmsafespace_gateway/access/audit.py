"""The audit log: every decision that changed something, or was refused; written in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from llmsafespace_gateway.access.key_format import ANY_KEY
from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.store import Store, audit
from llmsafespace_gateway.store.rows import AuditRow

log = logging.getLogger(__name__)

BATCH = 500
FORGET_AT_ONCE = 2000
FORGET_EVERY = 600.0  # seconds
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
    """Old entries go, and the oldest where there are too many; a little at a time, now and then."""

    def __init__(self, store: Store, age: float, most: int) -> None:
        self._store = store
        self._age = age
        self._most = most
        self._next = 0.0

    async def apply(self) -> None:
        """Delete some of what is too old or too much, where it is time to; raises the store's error."""
        if time.monotonic() < self._next:
            return
        gone = await audit.forget(self._store, time.time() - self._age, self._most, FORGET_AT_ONCE)
        # As long as there is more, at the next call: the store is everybody's.
        self._next = time.monotonic() + (0.0 if gone else FORGET_EVERY)


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
