"""From an agent's execution and command streams to typed events, and from events to one answer.

Everything an agent sends is hostile: what does not keep to the wire's rules ends the stream with
ApiError(service_unavailable); rich output is checked to be JSON but never built into objects here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from llmsafespace_agent.wire.frames import FrameKind, FrameStream
from llmsafespace_agent.wire.kernel_messages import UNREADABLE, BadKernelMessage, header_of, unpack
from llmsafespace_agent.wire.requests import CommandInfo, CommandOutput, ExecutionInfo, Gap
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.events import (
    Clear,
    Display,
    End,
    ErrorEvent,
    Event,
    InputRequest,
    Missed,
    Stderr,
    Stdout,
    Update,
)

ENDS = frozenset({"ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died", "expired"})
COLLECT_LIMIT = (
    20 * 1024 * 1024
)  # bytes of JSON; while it is encoded, an answer is in memory twice and a half
_AHEAD = 1024 * 1024  # bytes of frames that wait decoded for a slow reader; then the socket waits
_MAX_TEXT = 2000
_SEQ = struct.Struct(">Q")
_LAST_SECOND = 253402300799.0  # of the year 9999
_T = TypeVar("_T")


class _Stream(msgspec.Struct):
    name: str
    text: str


class _Transient(msgspec.Struct, frozen=True):
    display_id: str | None = None


class _Bundle(msgspec.Struct):
    data: dict[str, msgspec.Raw] = {}
    metadata: dict[str, msgspec.Raw] = {}
    transient: _Transient = _Transient()


class _Clear(msgspec.Struct):
    wait: bool = False


class _Error(msgspec.Struct):
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = []


class _Reply(msgspec.Struct):
    status: str = ""
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = []


class _Input(msgspec.Struct):
    prompt: str = ""
    password: bool = False


class _Sort(msgspec.Struct):
    """Just enough to tell the JSON frames of a stream apart."""

    gap: int | None = None
    seq: int | None = None


_encode = msgspec.json.Encoder().encode
_sort = msgspec.json.Decoder(_Sort)
_gap = msgspec.json.Decoder(Gap)
_info = msgspec.json.Decoder(ExecutionInfo)
_command_info = msgspec.json.Decoder(CommandInfo)
_command_output = msgspec.json.Decoder(CommandOutput)


def broken(what: str) -> ApiError:
    """The error for an agent that does not keep to the protocol."""
    return ApiError("service_unavailable", f"the sandbox's agent sent {what}", retry_after=1.0)


def moment(seconds: float) -> datetime:
    """Seconds since the epoch as UTC; what no calendar holds becomes its nearest end."""
    if math.isnan(seconds):
        seconds = 0.0
    return datetime.fromtimestamp(min(max(seconds, 0.0), _LAST_SECOND), UTC)


# -- frames --------------------------------------------------------------------------------------------


class _Frames:
    """The frames of a stream as an async iterator that slows its sender down, and never buffers much."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream
        self._waiting: collections.deque[tuple[int, bytes]] = collections.deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._ended = stream.closed
        stream.on_close = self._close
        stream.receive(self._take)

    def _take(self, kind: int, body: bytes) -> None:
        self._waiting.append((kind, body))
        self._size += len(body)
        if self._size > _AHEAD:
            self._stream.hold()
        self._changed.set()

    def _close(self, _error: Exception | None) -> None:
        self._ended = True
        self._changed.set()

    async def next(self) -> tuple[int, bytes] | None:
        """The next frame, or None when the stream has ended."""
        while not self._waiting:
            if self._ended or self._stream.closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        kind, body = self._waiting.popleft()
        self._size -= len(body)
        if self._size <= _AHEAD // 2:
            self._stream.release()
        return kind, body


async def events(stream: FrameStream) -> AsyncGenerator[Event]:
    """The events of an opened execution stream, `End` last. Closes the stream in the end.

    Raises ConnectionError when the stream ends without an end (follow the execution again from the last
    `seq`), ApiError(service_unavailable) when the agent breaks the protocol.
    """
    decoder = _ExecutionDecoder()
    async with contextlib.aclosing(_decoded(stream, decoder.frame)) as decoded:
        async for event in decoded:
            yield event


async def command_events(stream: FrameStream) -> AsyncGenerator[Event]:
    """The events of an opened command stream, `End` last; closes it in the end. Raises like `events`."""
    async with contextlib.aclosing(_decoded(stream, _command_frame)) as decoded:
        async for event in decoded:
            yield event


async def _decoded(stream: FrameStream, decode: Callable[[int, bytes], list[Event]]) -> AsyncGenerator[Event]:
    frames = _Frames(stream)
    try:
        while (frame := await frames.next()) is not None:
            try:
                found = decode(*frame)
            except (BadKernelMessage, *UNREADABLE) as error:
                raise broken("output that is not valid") from error
            for event in found:
                yield event
                if isinstance(event, End):
                    return
        raise ConnectionResetError("the agent's stream ended before the execution did")
    finally:
        stream.close()


# -- decoding ------------------------------------------------------------------------------------------


class _ExecutionDecoder:
    """Frames of one execution stream to events."""

    def __init__(self) -> None:
        self._explained = False
        self._reply: tuple[int, _Reply] | None = None

    def frame(self, kind: int, body: bytes) -> list[Event]:
        """The events of one frame. Raises what a broken frame raises in the decoders below it."""
        if kind == FrameKind.KERNEL:
            return self._message(body)
        if kind != FrameKind.JSON:
            raise broken("a frame of the wrong kind")
        if _sort.decode(body).gap is not None:
            return [_missed(body)]
        return self._ended(_info.decode(body))

    def _message(self, body: bytes) -> list[Event]:
        if len(body) < _SEQ.size:
            raise broken("a message without a sequence number")
        (seq,) = _SEQ.unpack_from(body)
        channel, parts = unpack(memoryview(body)[_SEQ.size :])
        kind = header_of(parts[0]).msg_type
        if channel == "shell" and kind == "execute_reply":
            self._reply = (seq, _content(parts[3], _Reply))
            return []
        event = _event(seq, kind, parts[3])
        if isinstance(event, ErrorEvent):
            self._explained = True
        return [] if event is None else [event]

    def _ended(self, info: ExecutionInfo) -> list[Event]:
        found: list[Event] = []
        if not self._explained and self._reply is not None and self._reply[1].status == "error":
            seq, reply = self._reply
            found.append(ErrorEvent(seq=seq, name=reply.ename, value=reply.evalue, traceback=reply.traceback))
        end = info.end if info.end in ENDS else "error"
        found.append(
            End(
                seq=info.last or 0,
                execution_id=info.id,
                end=end,
                exit_code=0 if end == "ok" else 1,
                message=info.message[:_MAX_TEXT] if info.message else None,
                started_at=moment(info.started_at),
                completed_at=moment(info.completed_at or info.started_at),
                execution_count=info.execution_count,
                context=info.context,
            )
        )
        return found


def _content(part: memoryview, of: type[_T]) -> _T:
    text = str(part, "utf-8")  # msgspec.Raw leaves the inside of strings unchecked
    return msgspec.json.decode(text, type=of)


def _event(seq: int, kind: str, part: memoryview) -> Event | None:
    """The event of a message of type `kind`, None for types that are none."""
    if kind == "stream":
        piece = _content(part, _Stream)
        return (Stderr if piece.name == "stderr" else Stdout)(seq=seq, text=piece.text)
    if kind in ("display_data", "execute_result"):
        bundle = _content(part, _Bundle)
        return Display(
            seq=seq,
            data=bundle.data,
            metadata=bundle.metadata,
            is_main_result=kind == "execute_result",
            display_id=bundle.transient.display_id,
        )
    if kind == "update_display_data":
        bundle = _content(part, _Bundle)
        return Update(
            seq=seq, data=bundle.data, metadata=bundle.metadata, display_id=bundle.transient.display_id
        )
    if kind == "clear_output":
        return Clear(seq=seq, wait=_content(part, _Clear).wait)
    if kind == "error":
        error = _content(part, _Error)
        return ErrorEvent(seq=seq, name=error.ename, value=error.evalue, traceback=error.traceback)
    if kind == "input_request":
        wanted = _content(part, _Input)
        return InputRequest(seq=seq, prompt=wanted.prompt, password=wanted.password)
    return None


def _missed(body: bytes) -> Missed:
    gap = _gap.decode(body)
    return Missed(seq=max(0, gap.resume - 1), missed=gap.gap, resume=gap.resume)


def _command_frame(kind: int, body: bytes) -> list[Event]:
    if kind != FrameKind.JSON:
        raise broken("a frame of the wrong kind")
    sort = _sort.decode(body)
    if sort.gap is not None:
        return [_missed(body)]
    if sort.seq is not None:
        piece = _command_output.decode(body)
        return [(Stderr if piece.stream == "stderr" else Stdout)(seq=piece.seq, text=piece.text)]
    return [command_end(_command_info.decode(body))]


def command_end(info: CommandInfo) -> End:
    """The last event of a command that has ended."""
    code = info.exit_code if info.exit_code is not None else 1
    end = info.end if info.end in ENDS else ("ok" if code == 0 else "error")
    return End(
        seq=info.head,
        execution_id=info.id,
        end=end,
        exit_code=code if code or end == "ok" else 1,
        started_at=moment(info.started_at),
        completed_at=moment(info.completed_at or info.started_at),
    )


# -- collecting ----------------------------------------------------------------------------------------


class Result(msgspec.Struct, kw_only=True):
    """One rich output that stood at the end."""

    data: dict[str, msgspec.Raw]
    metadata: dict[str, msgspec.Raw] = {}
    is_main_result: bool = False
    display_id: str | None = None


class Collected(msgspec.Struct, kw_only=True):
    """Everything an execution put out, up to a size; `truncated` when there was more."""

    stdout: str = ""
    stderr: str = ""
    results: list[Result] = []
    error: ErrorEvent | None = None
    end: End
    truncated: bool = False
    missed: int = 0


async def collect(source: AsyncIterator[Event], limit: int = COLLECT_LIMIT) -> Collected:
    """All events as one answer of at most about `limit` bytes of JSON. Raises what `source` raises."""
    collector = _Collector(limit)
    async for event in source:
        if isinstance(event, End):
            return collector.finish(event)
        collector.add(event)
    raise broken("no end of the execution")


class _Collector:
    def __init__(self, limit: int) -> None:
        self._left = limit
        self._text: dict[type[Event], list[str]] = {Stdout: [], Stderr: []}
        self._results: list[Result] = []
        self._shown: dict[str, list[Result]] = {}  # those with a display id
        self._error: ErrorEvent | None = None
        self._truncated = False
        self._clear_later = False
        self._missed = 0

    def add(self, event: Event) -> None:
        if isinstance(event, Stdout | Stderr):
            self._add_text(type(event), event.text)
        elif isinstance(event, Display):
            self._apply_clear()
            if self._fits(_size(event.data)):
                result = Result(
                    data=event.data,
                    metadata=event.metadata,
                    is_main_result=event.is_main_result,
                    display_id=event.display_id,
                )
                self._results.append(result)
                if event.display_id is not None:
                    self._shown.setdefault(event.display_id, []).append(result)
        elif isinstance(event, Update):
            self._update(event)
        elif isinstance(event, Clear):
            self._clear_later = True
            if not event.wait:
                self._apply_clear()
        elif isinstance(event, ErrorEvent):
            self._set_error(event)
        elif isinstance(event, Missed):
            self._missed += event.missed

    def finish(self, end: End) -> Collected:
        return Collected(
            stdout="".join(self._text[Stdout]),
            stderr="".join(self._text[Stderr]),
            results=self._results,
            error=self._error,
            end=end,
            truncated=self._truncated,
            missed=self._missed,
        )

    def _add_text(self, stream: type[Event], text: str) -> None:
        size = _json_size(text)
        if size > self._left:
            self._text[stream].append(text[: self._left * len(text) // size])
            self._left = 0
            self._truncated = True
            return
        self._left -= size
        self._text[stream].append(text)

    def _set_error(self, event: ErrorEvent) -> None:
        """An error is never left out: what does not fit is cut."""
        if not self._fits(_json_size(event.value) + sum(map(_json_size, event.traceback))):
            event = msgspec.structs.replace(event, value=event.value[:_MAX_TEXT], traceback=[])
        self._error = event

    def _update(self, event: Update) -> None:
        for result in self._shown.get(event.display_id, ()) if event.display_id is not None else ():
            if not self._fits(_size(event.data) - _size(result.data)):
                return
            result.data, result.metadata = event.data, event.metadata

    def _apply_clear(self) -> None:
        if self._clear_later:
            self._clear_later = False
            self._left += sum(_size(result.data) for result in self._results)
            self._results = []
            self._shown = {}

    def _fits(self, size: int) -> bool:
        if size > self._left:
            self._truncated = True
            return False
        self._left -= size
        return True


def _json_size(text: str) -> int:
    """Bytes of `text` in JSON: a control character has six."""
    return len(_encode(text)) - 2


def _size(bundle: dict[str, Any]) -> int:
    return sum(len(mime) + len(memoryview(value)) for mime, value in bundle.items())
