"""Every execution of the sandbox: what runs, what waits, how it ended, and which ids have been used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llmsafespace_agent.server.errors import conflict, not_found
from llmsafespace_agent.server.principals import check_same, session_key
from llmsafespace_protocol.requests import ExecutionInfo

KEPT = 10_000
ENAMES = {
    "ok": "",
    "error": "RequestDropped",
    "aborted": "ExecutionAborted",
    "timeout": "ExecutionTimeout",
    "interrupted": "KeyboardInterrupt",
    "oom": "OutOfMemory",
    "kernel_died": "KernelDied",
    "expired": "SandboxExpired",
}


@dataclass(slots=True, eq=False)
class Execution:
    """One execute_request and what became of it."""

    id: str
    context: str
    session: str
    header: bytes  # the request's own, the parent of every message about it
    accepted: int  # the journal's head when it came
    principal: str = ""
    digest: bytes = b""
    durable: bool = False
    silent: bool = False
    timeout: float | None = None
    stdin: list[str] | None = None  # lines that answer its input_requests, for which no client is asked
    status: str = "queued"
    sent: bool = False  # the kernel has it
    started_at: float = field(default_factory=time.time)
    completed_at: float | None = None
    end: str | None = None
    message: str | None = None
    first: int | None = None
    last: int | None = None
    execution_count: int | None = None
    copies: int = 1  # requests of this id in flight: plain clients may repeat an id
    replies: int = 0
    idles: int = 0
    stop: str | None = None  # why the agent interrupted it: timeout, interrupted
    timer: asyncio.TimerHandle | None = None
    on_end: list[Callable[[], None]] = field(default_factory=list)

    @property
    def asker(self) -> str:
        """The session that asked for it, as the journal names those."""
        return session_key(self.principal, self.session)

    @property
    def ended(self) -> bool:
        """Whether the end is known and told."""
        return self.status == "ended"

    def noted(self, seq: int) -> None:
        """A message about it has this sequence number."""
        if self.first is None:
            self.first = seq
        self.last = seq

    def info(self) -> ExecutionInfo:
        """The public account of it."""
        return ExecutionInfo(
            id=self.id,
            context=self.context,
            session=self.session,
            status=self.status,
            started_at=self.started_at,
            completed_at=self.completed_at,
            end=self.end,
            message=self.message,
            first=self.first,
            last=self.last,
            execution_count=self.execution_count,
            principal=self.principal,
        )


class Executions:
    """The table of executions by id; the oldest that have ended go when it is full."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._table: dict[str, Execution] = {}

    def __iter__(self) -> Iterator[Execution]:
        return iter(tuple(self._table.values()))

    def get(self, execution_id: str) -> Execution:
        """The execution of this id. Raises AgentError(not_found)."""
        execution = self._table.get(execution_id)
        if execution is None:
            raise not_found(f"there is no execution {execution_id!r} in this sandbox", id=execution_id)
        return execution

    def repeated(self, execution_id: str, digest: bytes, principal: str) -> Execution | None:
        """The execution that a durable request of this id repeats; None when the id is new.

        Raises AgentError(conflict) when the id was used for something else, or by somebody else.
        """
        self.check_free(execution_id, principal)
        execution = self._table.get(execution_id)
        if execution is not None and execution.digest != digest:
            raise conflict(
                f"execution id {execution_id!r} has been used with other content; use a new id",
                id=execution_id,
            )
        return execution

    def check_free(self, execution_id: str, principal: str) -> None:
        """Raise AgentError(conflict) when an execution of this id is another principal's."""
        execution = self._table.get(execution_id)
        if execution is not None:
            check_same(execution_id, execution.principal, principal)

    def add(self, execution: Execution) -> None:
        """Remember it. A plain client's repeated id never takes the place of a durable execution."""
        known = self._table.get(execution.id)
        if known is not None and (known.durable or not known.ended):
            return
        self._table.pop(execution.id, None)
        self._table[execution.id] = execution
        if len(self._table) > self._kept:
            self._evict()

    def forget_context(self, context_id: str) -> None:
        """Followers of a removed context's executions find nothing to read any more: only the ids stay."""
        for execution in self._table.values():
            if execution.context == context_id:
                execution.first = execution.last = None

    def _evict(self) -> None:
        for key, execution in self._table.items():
            if execution.ended:
                del self._table[key]
                return
