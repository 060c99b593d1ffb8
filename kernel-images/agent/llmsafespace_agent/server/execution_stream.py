"""The execution stream: starts or follows one execution, sends its messages and then its account."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

import msgspec

from llmsafespace_agent.server import messages, validation
from llmsafespace_agent.server.context import Context
from llmsafespace_agent.server.errors import invalid
from llmsafespace_agent.server.executions import Execution
from llmsafespace_agent.server.journal import Entry
from llmsafespace_agent.server.kernel_sink import KernelSink
from llmsafespace_agent.server.messages import Options
from llmsafespace_agent.server.reader import Reader, check_after
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import Opened, OpenExecution

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent


class ExecutionStream:
    """Serves one follower of one execution until its end, or until the follower leaves."""

    def __init__(self, agent: Agent, stream: FrameStream, execution: Execution, principal: str) -> None:
        self._agent = agent
        self._stream = stream
        self._execution = execution
        self._asker = execution.asker if execution.principal == principal else ""
        self._reader: Reader | None = None

    def start(self, context: Context | None, after: int) -> None:
        """Answer `Opened` and go on from `after`. Raises AgentError for an `after` that does not exist."""
        execution = self._execution
        if context is not None:
            self._reader = Reader(
                context.journal,
                self._stream,
                KernelSink(self._stream),
                max(after, execution.accepted),
                self._wanted,
                self._finish,
            )
        self._agent.connected += 1
        self._stream.on_close = self._closed
        self._stream.send(FrameKind.JSON, msgspec.json.encode(Opened()))
        self._stream.receive(self._frame)
        if self._reader is None:
            self._finish()
        elif execution.ended:
            self._reader.start()
            self._ended()
        else:
            execution.on_end.append(self._ended)
            self._reader.start()

    def _wanted(self, entry: Entry) -> bool:
        return entry.about == self._execution.id and (not entry.to or entry.to == self._asker)

    def _ended(self) -> None:
        if self._reader is not None:
            self._reader.finish(self._execution.last or 0)

    def _finish(self) -> None:
        self._stream.send(FrameKind.JSON, msgspec.json.encode(self._execution.info()))
        self._stream.close()

    def _frame(self, kind: int, body: bytes) -> None:
        """The gateway has nothing to say here."""
        refusal = invalid(f"an execution stream takes no frames (got kind {kind})").on_wire()
        self._stream.send(FrameKind.JSON, msgspec.json.encode(refusal))
        self._stream.close()

    def _closed(self, error: Exception | None) -> None:
        if self._reader is not None:
            self._reader.stop()
        if self._ended in self._execution.on_end:
            self._execution.on_end.remove(self._ended)
        self._agent.connected -= 1
        self._agent.activity()


async def open_execution(agent: Agent, stream: FrameStream, open_: OpenExecution) -> None:
    """Start the execution unless it has run, then follow it. Raises AgentError when it cannot."""
    validation.identifier(open_.execution, "execution")
    validation.text(open_.principal, "principal", 256)
    if open_.code is None:
        execution = agent.executions.get(open_.execution)
        context = next((one for one in agent.contexts if one.id == execution.context), None)
        if context is not None:
            check_after(context.journal, open_.after)
    else:
        context = await _context(agent, open_)
        check_after(context.journal, open_.after)
        execution = _run(agent, context, open_)
    ExecutionStream(agent, stream, execution, open_.principal).start(context, open_.after)


async def _context(agent: Agent, open_: OpenExecution) -> Context:
    agent.require_bound()
    if open_.context is None:
        return await agent.contexts.for_language(
            agent.contexts.language(open_.language), agent.config.workspace
        )
    context = agent.contexts.get(open_.context)
    if open_.language is not None and open_.language != context.language:
        raise invalid(
            f"context {open_.context!r} runs {context.language}, not {open_.language[:80]}",
            language=context.language,
        )
    return context


def _run(agent: Agent, context: Context, open_: OpenExecution) -> Execution:
    options = Options(
        validation.duration(open_.timeout, "timeout"),
        validation.environment(open_.env),
    )
    session = f"exec-{open_.execution}"
    parts = messages.execute_request(
        open_.code or "", open_.execution, session, options, allow_stdin=open_.stdin is not None
    )
    digest = messages.digest_of(parts[3], options, context.id, open_.stdin)
    repeated = agent.executions.repeated(open_.execution, digest, open_.principal)
    if repeated is not None:
        return repeated
    execution = Execution(
        id=open_.execution,
        context=context.id,
        session=session,
        principal=open_.principal,
        header=parts[0],
        accepted=context.journal.head,
        digest=digest,
        durable=True,
        timeout=agent.limits.execution_timeout(options.timeout),
        # As a text file's: splitlines() would also split at U+2028 and others that are characters of a line.
        stdin=None if open_.stdin is None else [line.rstrip("\n") for line in StringIO(open_.stdin, None)],
    )
    context.execute(parts, execution)
    return execution
