"""Calls to one sandbox's agent over one multiplexed stream."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from llmsafespace_agent.wire.frames import FrameKind, FrameStream
from llmsafespace_agent.wire.kernel_messages import UNREADABLE
from llmsafespace_agent.wire.requests import METHODS, Answer, Error, FileInfo, Opened, Request
from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import STATUS, ApiError

CALL_TIMEOUT = 60.0
_answers = msgspec.json.Decoder(Answer)
_written = msgspec.json.Decoder(FileInfo)
_refused = msgspec.json.Decoder(Error)
_MAX_MESSAGE = 2000


def as_api_error(error: Error) -> ApiError:
    """An agent's refusal as ours. The agent is hostile: only known codes pass, and texts are cut."""
    code = error.code if error.code in STATUS else "service_unavailable"
    if code in ("unauthorized", "forbidden", "internal_error", "insufficient_storage"):
        code = "service_unavailable"
    return ApiError(code, error.message[:_MAX_MESSAGE], error.details)


def unreachable(message: str = "the sandbox's agent did not answer; try again") -> ApiError:
    """The error for an agent that is gone or does not keep to the protocol."""
    return ApiError("service_unavailable", message, retry_after=1.0)


async def opened(stream: FrameStream, timeout: float = CALL_TIMEOUT) -> Opened:
    """Read the agent's answer to an open. Raises ApiError when it refuses, and then closes the stream."""
    try:
        async with asyncio.timeout(timeout):
            kind, body = await stream.next_frame()
        if kind != FrameKind.JSON:
            raise unreachable()
        answer = msgspec.json.decode(body, type=Opened)
    except (TimeoutError, ConnectionError, *UNREADABLE) as error:
        stream.abort()
        raise unreachable() from error
    except ApiError:
        stream.abort()
        raise
    if answer.error is not None:
        stream.close()
        raise as_api_error(answer.error)
    return answer


def written(body: bytes) -> FileInfo:
    """The agent's answer to an upload. Raises ApiError for its refusal, one of UNREADABLE for nonsense."""
    try:
        return _written.decode(body)
    except msgspec.ValidationError:
        raise as_api_error(_refused.decode(body)) from None


class AgentClient:
    """The rpc stream of one sandbox. `closed` once the stream has ended."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._decoding: set[asyncio.Task[None]] = set()
        self._next = 0
        stream.on_close = self._ended
        stream.receive(self._received)

    @property
    def closed(self) -> bool:
        """True when a new stream is needed."""
        return self._stream.closed or self._stream.transport.is_closing()

    @property
    def busy(self) -> bool:
        """True while a call waits for its answer."""
        return bool(self._pending)

    def close(self) -> None:
        """End the stream; waiting calls fail."""
        self._stream.close()

    async def call(self, method: str, params: msgspec.Struct, timeout: float = CALL_TIMEOUT) -> Any:
        """Call `method` of METHODS and return its typed result.

        Raises ApiError: the agent's own refusal, or service_unavailable when it does not answer.
        """
        self._next += 1
        number = self._next
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            request = Request(number, method, msgspec.Raw(msgspec.json.encode(params)))
            self._stream.send(FrameKind.JSON, msgspec.json.encode(request))
            async with asyncio.timeout(timeout):
                got = await answer
        except (TimeoutError, ConnectionError) as error:
            raise unreachable() from error
        finally:
            self._pending.pop(number, None)
        if got.error is not None:
            raise as_api_error(got.error)
        try:
            return await bulk.decode(got.result or b"{}", METHODS[method][1])
        except UNREADABLE as error:
            raise unreachable(f"the sandbox's agent gave a broken answer to {method}") from error

    def _received(self, kind: int, body: bytes) -> None:
        if kind == FrameKind.JSON and len(body) > bulk.LARGE:
            task = asyncio.ensure_future(self._decoded(body))
            self._decoding.add(task)
            task.add_done_callback(self._decoding.discard)
            return
        try:
            self._answered(_answers.decode(body) if kind == FrameKind.JSON else None)
        except UNREADABLE:
            self._answered(None)

    async def _decoded(self, body: bytes) -> None:
        try:
            self._answered(await asyncio.to_thread(_answers.decode, body))
        except UNREADABLE:
            self._answered(None)

    def _answered(self, answer: Answer | None) -> None:
        if answer is None:
            self._stream.abort()
            return
        waiting = self._pending.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _ended(self, error: Exception | None) -> None:
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the agent closed the stream"))
