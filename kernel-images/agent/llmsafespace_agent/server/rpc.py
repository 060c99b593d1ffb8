"""The rpc stream: requests and answers, several at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from llmsafespace_agent.server import validation
from llmsafespace_agent.server.errors import AgentError, invalid
from llmsafespace_protocol.frames import MAX_FRAME, FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import UNREADABLE
from llmsafespace_protocol.requests import (
    METHODS,
    Answer,
    ById,
    CommandInfo,
    CommandSignal,
    CommandStart,
    CommandStdin,
    ContextCreate,
    ContextInfo,
    Empty,
    Error,
    ExecutionInfo,
    FileInfo,
    FileList,
    FileMove,
    FilePath,
    Limits,
    Opened,
    PackagesInstall,
    Ready,
    Request,
    Shutdown,
    Status,
)

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent

_log = logging.getLogger(__name__)
_AT_ONCE = 64
_PASSIVE = frozenset(
    {"status", "ready", "contexts.list", "contexts.get", "executions.list", "executions.get", "commands.list"}
    | {"commands.get"}
)
_UNBOUND = frozenset({"status", "ready", "bind", "set_limits", "shutdown"})
_requests = msgspec.json.Decoder(Request)
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(types[0]) for name, types in METHODS.items()
}


class Methods:
    """What can be called, by the names of METHODS with `_` for `.`."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def status(self, params: Empty) -> Status:
        await self._agent.inside.measure()
        return self._agent.status()

    async def ready(self, params: Ready) -> Status:
        return await self._agent.ready(params.timeout)

    async def bind(self, params: Any) -> Status:
        return await self._agent.binding.bind(params)

    async def set_limits(self, params: Limits) -> Status:
        self._agent.limits.set(params)
        return self._agent.status()

    async def shutdown(self, params: Shutdown) -> Empty:
        self._agent.end(params.end, "The sandbox was terminated.")
        return Empty()

    async def contexts_list(self, params: Empty) -> list[ContextInfo]:
        return [context.info() for context in self._agent.contexts]

    async def contexts_create(self, params: ContextCreate) -> ContextInfo:
        return (await self._agent.contexts.create(params, self._agent.config.workspace)).info()

    async def contexts_get(self, params: ById) -> ContextInfo:
        return self._agent.contexts.get(params.id).info()

    async def contexts_remove(self, params: ById) -> Empty:
        await self._agent.contexts.remove(params.id)
        return Empty()

    async def contexts_restart(self, params: ById) -> ContextInfo:
        context = self._agent.contexts.get(params.id)
        await context.restart()
        return context.info()

    async def contexts_interrupt(self, params: ById) -> ContextInfo:
        context = self._agent.contexts.get(params.id)
        context.interrupt()
        return context.info()

    async def executions_list(self, params: Empty) -> list[ExecutionInfo]:
        return [execution.info() for execution in self._agent.executions]

    async def executions_get(self, params: ById) -> ExecutionInfo:
        return self._agent.executions.get(params.id).info()

    async def executions_interrupt(self, params: ById) -> ExecutionInfo:
        execution = self._agent.executions.get(params.id)
        if not execution.ended:
            self._agent.contexts.get(execution.context).tracker.interrupted(execution)
        return execution.info()

    async def files_list(self, params: FileList) -> list[FileInfo]:
        return await asyncio.to_thread(self._agent.files.entries, params)

    async def files_stat(self, params: FilePath) -> FileInfo:
        return self._agent.files.stat(params.path)

    async def files_mkdir(self, params: FilePath) -> FileInfo:
        return self._agent.files.make_folder(params.path)

    async def files_remove(self, params: FilePath) -> Empty:
        await asyncio.to_thread(self._agent.files.remove, params.path, params.recursive)
        return Empty()

    async def files_move(self, params: FileMove) -> FileInfo:
        return self._agent.files.move(params)

    async def commands_start(self, params: CommandStart) -> CommandInfo:
        return (await self._agent.commands.start(params)).info()

    async def commands_list(self, params: Empty) -> list[CommandInfo]:
        return [command.info() for command in self._agent.commands]

    async def commands_get(self, params: ById) -> CommandInfo:
        return self._agent.commands.get(params.id).info()

    async def commands_signal(self, params: CommandSignal) -> CommandInfo:
        return self._agent.commands.signal(params.id, params.signal).info()

    async def commands_stdin(self, params: CommandStdin) -> CommandInfo:
        data = validation.input_bytes(params.data, params.encoding)
        return self._agent.commands.write(params.id, data, params.eof).info()

    async def packages_install(self, params: PackagesInstall) -> CommandInfo:
        return (await self._agent.install(params)).info()


class RpcStream:
    """Answers requests until the stream ends."""

    def __init__(self, agent: Agent, stream: FrameStream) -> None:
        self._agent = agent
        self._stream = stream
        self._running: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Answer `Opened` and take requests."""
        self._stream.send(FrameKind.JSON, msgspec.json.encode(Opened()))
        self._stream.receive(self._frame)

    def _frame(self, kind: int, body: bytes) -> None:
        try:
            if kind != FrameKind.JSON or len(body) > MAX_FRAME:
                raise invalid(f"a request is one JSON frame of at most {MAX_FRAME} bytes")
            request = _requests.decode(body)
        except (AgentError, *UNREADABLE) as error:
            # Without an id there is no way to answer: the stream cannot go on.
            refusal = Error("invalid_request", f"not a request: {error}")
            self._stream.send(FrameKind.JSON, msgspec.json.encode(Opened(error=refusal)))
            self._stream.close()
            return
        task = asyncio.create_task(self._serve(request))
        self._running.add(task)
        task.add_done_callback(self._done)
        if len(self._running) >= _AT_ONCE:
            self._stream.hold()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if len(self._running) < _AT_ONCE:
            self._stream.release()

    async def _serve(self, request: Request) -> None:
        try:
            result = await self._call(request)
            answer = Answer(request.id, result=msgspec.Raw(msgspec.json.encode(result)))
        except AgentError as error:
            answer = Answer(request.id, error=error.on_wire())
        except Exception:
            _log.exception("%s failed", request.method)
            answer = Answer(request.id, error=Error("internal_error", f"{request.method} failed"))
        self._stream.send(FrameKind.JSON, msgspec.json.encode(answer))

    async def _call(self, request: Request) -> Any:
        method: Callable[[Any], Awaitable[Any]] | None = self._agent.methods.get(request.method)
        if method is None:
            raise invalid(f"there is no method {request.method[:80]!r}")
        if request.method not in _UNBOUND:
            self._agent.require_bound()
        if request.method not in _PASSIVE:
            self._agent.activity()
        try:
            params = _decoders[request.method].decode(request.params)
        except UNREADABLE as error:
            raise invalid(f"{request.method}: {error}") from error
        return await method(params)


def methods_of(agent: Agent) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """METHODS by name, bound to `agent`."""
    methods = Methods(agent)
    return {name: getattr(methods, name.replace(".", "_")) for name in METHODS}
