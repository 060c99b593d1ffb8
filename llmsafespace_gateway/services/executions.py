"""Code, commands and installations of packages: begun by one method each, whatever door asks.

Each is authorized, limited, handed to the sandbox, and then is one audit entry and one count: of what was
accepted, or of the refusal with its code (see access.executions). What becomes of it afterwards is followed
with `runs`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal, TypeVar, cast

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.access.executions import ACTION, COMMAND, PACKAGES, Kind, Mark, mark_of
from llmsafespace_gateway.access.principal import EXECUTE
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.collecting import Collected, collect
from llmsafespace_gateway.sandboxes.events import End, Event
from llmsafespace_gateway.services import runs
from llmsafespace_gateway.services.base import Caller, Service
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.requests import (
    ById,
    CommandInfo,
    CommandSignal,
    CommandStart,
    Empty,
    ExecutionInfo,
    OpenCommand,
    OpenExecution,
    PackagesInstall,
)

_T = TypeVar("_T")


class Execute(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run: code in a context, or a line for the shell, which has a `cwd`."""

    id: str
    kind: Kind
    content: str
    context: str | None = None
    language: str | None = None
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout: float | None = None
    stdin: str | None = None
    stdin_encoding: Literal["utf-8", "base64"] = "utf-8"

    @property
    def size(self) -> int:
        """Bytes of what is sent, about."""
        return len(self.content) + len(self.stdin or "")

    def mark(self) -> Mark:
        """The same for the same execution, through each door whose ids name one."""
        where = (self.context, self.language, self.cwd)
        return mark_of(
            self.kind, self.content, *where, self.env, self.timeout, self.stdin, self.stdin_encoding
        )


class ExecutionService(Service):
    """Begins, follows and interrupts what people run."""

    async def begin(
        self,
        caller: Caller,
        sandbox: SandboxRow | str,
        wanted: Execute,
        may: Callable[[], None] = lambda: None,
    ) -> runs.Run:
        """Begin an execution, once for its id. Raises ApiError; `may` can refuse it as well.

        `sandbox` is its id, or its row where the caller's right on it was looked at already.
        """

        async def begin(row: SandboxRow) -> runs.Run:
            may()
            if wanted.kind == "command":
                return await runs.begin_command(self.sandboxes, row.id, _command(row, wanted))
            return await runs.begin_code(self.sandboxes, row, _code(caller, wanted))

        mark = await bulk.run(wanted.size, wanted.mark)
        details = {"type": wanted.kind, "size": len(wanted.content)}
        run = await self._accepted(caller, sandbox, wanted.id, ACTION, mark, begin, **details)
        run.ended = self._count_end
        return run

    async def start_command(
        self, caller: Caller, row: SandboxRow, start: CommandStart, *, background: bool
    ) -> CommandInfo:
        """Start a command, once for its id. Raises ApiError."""

        def mark() -> Mark:
            how = (start.cwd, start.env, start.timeout, background, start.keep_stdin)
            return mark_of("command", start.command, start.argv, *how, start.stdin, start.stdin_encoding)

        size = len(start.command or "") + sum(map(len, start.argv or ()))
        marked = await bulk.run(size + len(start.stdin or ""), mark)
        return await self._command_accepted(caller, row, COMMAND, "commands.start", start, marked, size=size)

    async def install(self, caller: Caller, row: SandboxRow, install: PackagesInstall) -> CommandInfo:
        """Install packages, once for the command's id. Raises ApiError."""
        mark = mark_of("command", "packages", install.packages, install.manager, install.timeout)
        told = {"packages": install.packages[:20]}
        return await self._command_accepted(caller, row, PACKAGES, "packages.install", install, mark, **told)

    async def interrupt(
        self, caller: Caller, sandbox: SandboxRow | str, execution: str
    ) -> ExecutionInfo | CommandInfo:
        """Interrupt an execution or a command; one that has ended stays as it is. Raises ApiError."""
        row = await self._row(caller, sandbox)
        with self.act(caller, "execution.interrupt", row.id, execution=execution):
            info = await runs.find(self.sandboxes, row.id, execution)
            if isinstance(info, ExecutionInfo):
                code: ExecutionInfo = await self.sandboxes.rpc(
                    row.id, "executions.interrupt", ById(id=info.id)
                )
                return code
            if info.running:
                signal = CommandSignal(id=info.id, signal="SIGINT")
                return cast("CommandInfo", await self.sandboxes.rpc(row.id, "commands.signal", signal))
            return info

    async def all(self, row: SandboxRow) -> list[ExecutionInfo | CommandInfo]:
        """What the sandbox knows, code and commands, newest first. Raises ApiError."""
        code: list[ExecutionInfo] = await self.sandboxes.rpc(row.id, "executions.list", Empty())
        commands: list[CommandInfo] = await self.sandboxes.rpc(row.id, "commands.list", Empty())
        return sorted([*code, *commands], key=lambda info: info.started_at, reverse=True)

    async def find(self, row: SandboxRow, execution: str) -> ExecutionInfo | CommandInfo:
        """An execution, or else a command. Raises ApiError(not_found) when it is neither."""
        return await runs.find(self.sandboxes, row.id, execution)

    async def reopen(
        self,
        caller: Caller,
        row: SandboxRow,
        info: ExecutionInfo | CommandInfo,
        after: int = 0,
        *,
        begun: bool = False,
    ) -> runs.Run:
        """Something that was begun before, to be followed from a sequence number on. Raises ApiError.

        `begun`: by this request, so that its end is counted.
        """
        open_: OpenExecution | OpenCommand = OpenCommand(command=info.id, after=after)
        if isinstance(info, ExecutionInfo):
            open_ = OpenExecution(execution=info.id, after=after, principal=caller.principal.user_id)
        run = await runs.begin(self.sandboxes, row.id, open_)
        if begun:
            run.ended = self._count_end
        return run

    def follow(self, run: runs.Run) -> AsyncGenerator[Event]:
        """Every event, in order, `End` last. Raises ApiError, ConnectionError (see `runs.follow`)."""
        return runs.follow(self.sandboxes, run)

    async def outcome(self, run: runs.Run) -> Collected:
        """What a run has put out, once it has ended. Raises ApiError, ConnectionError."""
        async with contextlib.aclosing(self.follow(run)) as source:
            return await collect(source)

    def pass_on(
        self,
        caller: Caller,
        row: SandboxRow,
        execution: str,
        mark: Mark | None,
        *,
        allowed: bool,
        **details: Any,
    ) -> None:
        """Code that a kernel's websocket passes on next. Raises ApiError where it must not be.

        It counts as accepted; where the sandbox refuses it, `refused_by_sandbox` follows. What is not
        `allowed` is audited as forbidden, and does not raise: the relay refuses it.
        """
        log, who = self.access.executions, caller.principal
        told: dict[str, Any] = {"door": caller.door, "mark": mark, "type": "code", **details}
        if allowed:
            log.admit(who, row.id, execution, **told)
        log.note(who, row.id, execution, outcome="ok" if allowed else "forbidden", **told)

    def refused_by_sandbox(self, caller: Caller, row: SandboxRow, execution: str, code: str) -> None:
        """The sandbox refused what was just passed on."""
        self.access.executions.refused_by_sandbox(caller.principal, row.id, execution, caller.door, code)

    async def refuse_execution(
        self,
        caller: Caller,
        sandbox_id: str,
        execution: str,
        error: ApiError,
        action: str = ACTION,
        **details: Any,
    ) -> None:
        """Audit and count a refusal, once. The sandbox is named only where the caller may see it."""
        if error.audited:
            return
        error.audited = True
        self.access.executions.count(caller.door, error.code)
        details = {"execution": execution, "door": caller.door, **details}
        await self.access.refused_on(caller.principal, action, sandbox_id, error.code, **details)

    # -- inside ----------------------------------------------------------------------------------------

    async def _accepted(
        self,
        caller: Caller,
        sandbox: SandboxRow | str,
        execution: str,
        action: str,
        mark: Mark,
        begin: Callable[[SandboxRow], Awaitable[_T]],
        **details: Any,
    ) -> _T:
        """What `begin` gives, within the rate limits; audited and counted once, refused or not."""
        log, who = self.access.executions, caller.principal
        sandbox_id = sandbox if isinstance(sandbox, str) else sandbox.id
        told: dict[str, Any] = {"door": caller.door, "mark": mark, "action": action, **details}
        try:
            row = await self._row(caller, sandbox)
            log.admit(who, sandbox_id, execution, **told)
            begun = await begin(row)
        except ApiError as error:
            await self.refuse_execution(caller, sandbox_id, execution, error, action, **details)
            raise
        log.note(who, sandbox_id, execution, **told)
        return begun

    async def _command_accepted(
        self,
        caller: Caller,
        row: SandboxRow,
        action: str,
        method: str,
        wanted: CommandStart | PackagesInstall,
        mark: Mark,
        **details: Any,
    ) -> CommandInfo:
        async def begin(row: SandboxRow) -> CommandInfo:
            info: CommandInfo = await self.sandboxes.rpc(row.id, method, wanted)
            if wanted.timeout is not None:
                self.sandboxes.overdue.watch(row.id, info.id, wanted.timeout, command=True)
            return info

        details["command_id"] = wanted.id
        return await self._accepted(caller, row, wanted.id, action, mark, begin, **details)

    def _count_end(self, end: End) -> None:
        self.metrics.executions.labels(end.end).inc()

    async def _row(self, caller: Caller, sandbox: SandboxRow | str) -> SandboxRow:
        if isinstance(sandbox, SandboxRow):
            return sandbox
        return await self.access.sandbox(caller.principal, sandbox, EXECUTE)


def _command(row: SandboxRow, wanted: Execute) -> CommandStart:
    return CommandStart(
        id=wanted.id,
        command=wanted.content,
        cwd=wanted.cwd,
        env=wanted.env,
        timeout=wanted.timeout or row.timeout,
        stdin=wanted.stdin,
        stdin_encoding=wanted.stdin_encoding,
    )


def _code(caller: Caller, wanted: Execute) -> OpenExecution:
    return OpenExecution(
        execution=wanted.id,
        context=wanted.context,
        language=wanted.language,
        code=wanted.content,
        env=wanted.env,
        timeout=wanted.timeout,
        stdin=wanted.stdin,
        principal=caller.principal.user_id,
    )
