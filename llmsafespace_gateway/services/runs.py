"""Run code or a command in a sandbox and follow it, over broken streams, to its honest end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec

from llmsafespace_gateway import tasks
from llmsafespace_gateway.access.executions import Kind
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.events import End, Event
from llmsafespace_gateway.sandboxes.executions import batches, moment
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.requests import (
    ById,
    CommandInfo,
    CommandStart,
    Empty,
    ExecutionInfo,
    OpenCommand,
    OpenExecution,
)

_ATTEMPTS = 6
_SILENCE = 20.0  # seconds without an event after which the agent is asked for a sign of life
_ANSWER = 10.0  # seconds that it has for it
_ENDS = {"expired": "expired", "oom": "oom", "terminated": "aborted", "timeout": "timeout"}

_T = TypeVar("_T")


class Run(msgspec.Struct, kw_only=True):
    """An execution that has been accepted by its agent and can be followed."""

    sandbox_id: str
    open: OpenExecution | OpenCommand
    stream: FrameStream | None  # None: lost just after it was accepted
    began: float
    limit: float | None = None  # seconds that it may run; None: not known, as it was begun by somebody else
    ended: Callable[[End], None] = lambda end: None  # hears how it ended

    @property
    def id(self) -> str:
        """The execution's id."""
        return self.open.execution if isinstance(self.open, OpenExecution) else self.open.command

    @property
    def kind(self) -> Kind:
        """Whether it is code or a command."""
        return "code" if isinstance(self.open, OpenExecution) else "command"


async def begin(
    sandboxes: Sandboxes, sandbox_id: str, open_: OpenExecution | OpenCommand, limit: float | None = None
) -> Run:
    """Open the stream of an execution or command. Raises ApiError as the agent refuses.

    `limit` is for one that is begun here: the seconds that it may run, math.inf where there is no limit.
    """
    began = time.time()
    stream = await sandboxes.open(sandbox_id, open_)
    run = Run(sandbox_id=sandbox_id, open=open_, stream=stream, began=began, limit=limit)
    if limit is not None and limit < math.inf:
        sandboxes.overdue.watch(sandbox_id, run.id, limit, command=run.kind == "command")
    return run


async def begin_code(sandboxes: Sandboxes, row: SandboxRow, open_: OpenExecution) -> Run:
    """Begin code in a sandbox, once for its id. Raises ApiError as the agent refuses."""
    limits = [limit for limit in (open_.timeout, row.timeout) if limit is not None]
    return await begin(sandboxes, row.id, open_, min(limits, default=math.inf))


async def begin_command(sandboxes: Sandboxes, sandbox_id: str, start: CommandStart) -> Run:
    """Start a command, once for its id, and open its stream. Raises ApiError."""
    await sandboxes.rpc(sandbox_id, "commands.start", start)
    limit = start.timeout if start.timeout is not None else math.inf
    open_ = OpenCommand(command=start.id)
    began = time.time()
    try:
        return await begin(sandboxes, sandbox_id, open_, limit)
    except ApiError as error:
        if error.code not in ("gone", "service_unavailable"):
            raise
        return Run(sandbox_id=sandbox_id, open=open_, stream=None, began=began, limit=limit)


async def find(sandboxes: Sandboxes, sandbox_id: str, execution_id: str) -> ExecutionInfo | CommandInfo:
    """The execution, or else the command, of this id. Raises ApiError(not_found) when it is neither."""
    try:
        code: ExecutionInfo = await sandboxes.rpc(sandbox_id, "executions.get", ById(id=execution_id))
        return code
    except ApiError as error:
        if error.code != "not_found":
            raise
    command: CommandInfo = await sandboxes.rpc(sandbox_id, "commands.get", ById(id=execution_id))
    return command


async def follow(sandboxes: Sandboxes, run: Run) -> AsyncGenerator[Event]:
    """Every event after `run.open.after`, once and in order, `End` last.

    A broken stream is taken up again where it broke off. When the sandbox ends first, the `End` says how.
    Raises ApiError when the agent cannot be reached for long, or breaks the protocol.
    """
    after = run.open.after
    stream = run.stream
    failures = 0
    while True:
        try:
            if stream is None:
                stream = await sandboxes.open(run.sandbox_id, msgspec.structs.replace(run.open, after=after))
            decoded = batches(stream, command=run.kind == "command")

            async def alive() -> None:
                await sandboxes.rpc(run.sandbox_id, "status", Empty(), _ANSWER)

            async with contextlib.aclosing(heard(decoded, alive)) as source:
                async for batch in source:
                    failures = 0
                    for event in batch:
                        after = max(after, event.seq)
                        if isinstance(event, End):
                            sandboxes.overdue.ended(run.sandbox_id, run.id)
                            run.ended(event)
                        yield event
                        if isinstance(event, End):
                            return
        except (ConnectionError, ApiError) as error:
            failures += 1
            if isinstance(error, ApiError) and error.code == "gone":
                end = _ended_with_sandbox(run, error)
                run.ended(end)
                yield end
                return
            if failures >= _ATTEMPTS or (isinstance(error, ApiError) and error.code != "service_unavailable"):
                raise
        stream = None
        await asyncio.sleep(0.05 * 2**failures)


async def heard(
    source: AsyncGenerator[_T], alive: Callable[[], Awaitable[None]], silence: float = _SILENCE
) -> AsyncGenerator[_T]:
    """What `source` yields; whenever nothing has come for `silence` seconds, `alive` must not raise.

    A sandbox that has used up its processor (a fork bomb) keeps its stream open and says nothing on it.
    """
    async with contextlib.aclosing(source):
        while True:
            following = asyncio.ensure_future(anext(source, None))
            try:
                while not (await asyncio.wait({following}, timeout=silence))[0]:
                    await alive()
            finally:
                await tasks.end(following)
            found = following.result()
            if found is None:
                return
            yield found


def _ended_with_sandbox(run: Run, error: ApiError) -> End:
    end = _ENDS.get(str(error.details.get("end")), "kernel_died")
    if end == "timeout" and run.limit is not None and time.time() < run.began + run.limit:
        end = "kernel_died"  # another execution ran too long, and took this one along
    return End(
        execution_id=run.id,
        end=end,
        exit_code=1,
        message=error.message,
        started_at=moment(run.began),
        completed_at=moment(time.time()),
    )


def new_id() -> str:
    """An execution id for clients that send none."""
    return uuid.uuid4().hex
