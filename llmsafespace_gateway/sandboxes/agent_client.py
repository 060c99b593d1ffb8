"""Calls to one sandbox's agent over one multiplexed stream.

The agent is hostile, and all sandboxes share the gateway's threads and memory. So a large answer is decoded
in a thread only when a call waits for its id, and until that is done no further frame is read from this
stream: a sandbox has one thread at most, and what it sends beyond that stays on its own side.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import STATUS, ApiError
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import UNREADABLE
from llmsafespace_protocol.requests import METHODS, Answer, Error, FileInfo, Opened, Request

CALL_TIMEOUT = 60.0
_answers = msgspec.json.Decoder(Answer)
_written = msgspec.json.Decoder(FileInfo)
_refused = msgspec.json.Decoder(Error)
_MAX_MESSAGE = 2000
_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*([0-9]{1,18})\s*[,}]')  # an Answer begins so


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
        self._decoding: asyncio.Task[None] | None = None
        self._over = False
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
        if kind != FrameKind.JSON:
            self._stream.abort()
        elif len(body) > bulk.LARGE:
            self._received_large(body)
        else:
            self._answered(_decoded(body))

    def _received_large(self, body: bytes) -> None:
        found = _ID.match(body)
        if found is None:
            self._stream.abort()
            return
        number = int(found[1])
        if self._awaits(number):
            self._stream.hold()
            self._decoding = asyncio.ensure_future(self._decode(number, body))

    async def _decode(self, number: int, body: bytes) -> None:
        answer: Answer | None = None
        try:
            answer = await asyncio.to_thread(_decoded, body)
            if answer is not None and answer.id != number:
                answer = None
        finally:
            self._decoding = None
            self._answered(answer)
            if answer is not None:
                self._stream.release()  # which may begin the next one
            if self._over and self._decoding is None:
                self._fail()

    def _awaits(self, number: int) -> bool:
        waiting = self._pending.get(number)
        return waiting is not None and not waiting.done()

    def _answered(self, answer: Answer | None) -> None:
        if answer is None:
            self._stream.abort()
        elif self._awaits(answer.id):
            self._pending[answer.id].set_result(answer)

    def _ended(self, error: Exception | None) -> None:
        self._over = True
        if self._decoding is None:  # else an answer that has come is delivered first
            self._fail()

    def _fail(self) -> None:
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the agent closed the stream"))


def _decoded(body: bytes) -> Answer | None:
    """An answer; None when it is broken."""
    try:
        return _answers.decode(body)
    except UNREADABLE:
        return None
