"""Audit entries that a killed gateway could not write: of executions, completed from what the agents know.

A gateway that is killed loses the entries of its last 0.2 seconds. The sandboxes live on, and their agents
list what was accepted. So at its start a gateway asks each agent, and adds an entry for each execution that
has none: with its id, without the door, which nobody knows any more (`unknown`), and with the user only where
the agent names one that has the sandbox. Only executions since an hour before the newest entry are looked at:
what is older was written, and may have been forgotten on purpose since. What an agent says is bounded.

Refusals leave no trace with an agent. Those of the last 0.2 seconds are lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.executions import Kind, key_of
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.store import Store, audit, grants, sandboxes
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.requests import CommandInfo, Empty, ExecutionInfo

log = logging.getLogger(__name__)

REACH = 3600.0  # seconds before the newest entry
MOST = 1000  # executions of one sandbox that are looked at, the latest
_AT_ONCE = 8
_SETTLED = 1.0  # seconds in which other processes write what they have accepted
_MAX_ID = 256
_ANSWER = 10.0  # seconds


class Completion:
    """Runs once, in the background of a gateway's start."""

    def __init__(self, access: Access, sandboxes: Sandboxes, store: Store) -> None:
        self._access = access
        self._sandboxes = sandboxes
        self._store = store

    async def run(self) -> None:
        """Add what is missing. What fails for one sandbox is told in the log, and left out."""
        until = time.time()
        newest = await audit.newest(self._store)
        since = 0.0 if newest is None else newest - REACH
        await asyncio.sleep(_SETTLED)
        turn = asyncio.Semaphore(_AT_ONCE)

        async def complete(row: SandboxRow) -> None:
            async with turn:
                try:
                    await self._complete(row, since, until)
                except (ApiError, ConnectionError) as error:
                    log.info("the executions of sandbox %s cannot be listed: %s", row.id, error)
                except Exception:
                    log.exception("the executions of sandbox %s cannot be audited", row.id)

        rows = [row for row in await sandboxes.running(self._store) if row.created_at < until]
        await asyncio.gather(*map(complete, rows))

    async def _complete(self, row: SandboxRow, since: float, until: float) -> None:
        code: list[ExecutionInfo] = await self._sandboxes.rpc(row.id, "executions.list", Empty(), _ANSWER)
        commands: list[CommandInfo] = await self._sandboxes.rpc(row.id, "commands.list", Empty(), _ANSWER)
        kinds: tuple[tuple[Kind, Iterable[ExecutionInfo | CommandInfo]], ...] = (
            ("code", code),
            ("command", commands),
        )
        for kind, found in kinds:
            known = [
                info
                for info in found
                if since <= info.started_at < until
                and len(info.id) <= _MAX_ID
                and info.id != row.setup_command
            ]
            known = sorted(known, key=lambda info: info.started_at)[-MOST:]
            marks = {key_of(row.id, kind, info.id): info for info in known}
            there = await audit.executions(self._store, row.tenant, list(marks))
            for mark, info in marks.items():
                if mark not in there:
                    user = await self._user(row, info)
                    self._access.executions.complete(row.tenant, user, row.id, kind, info.id, info.started_at)

    async def _user(self, row: SandboxRow, info: ExecutionInfo | CommandInfo) -> str | None:
        """Who asked, where the agent names one that has the sandbox: code may have taken it over."""
        who = info.principal if isinstance(info, ExecutionInfo) else ""
        if who == row.owner or (who and await grants.level(self._store, row.id, who) is not None):
            return who
        return None
