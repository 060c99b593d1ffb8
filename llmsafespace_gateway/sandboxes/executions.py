"""From an agent's execution and command streams to typed events.

Everything an agent sends is hostile: what does not keep to the wire's rules ends the stream with
ApiError(service_unavailable). What a kernel wrote is code's to choose: a message that cannot be read is left
out with a note, and the others count. Rich output is checked to be JSON but never built into objects here.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import struct
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

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
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import UNREADABLE, BadKernelMessage, header_of, unpack
from llmsafespace_protocol.requests import CommandInfo, CommandOutput, ExecutionInfo, Gap

_BUNDLES = frozenset({"display_data", "execute_result", "update_display_data"})
ENDS = frozenset({"ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died", "expired"})
_AHEAD = 1024 * 1024  # bytes of frames that wait decoded for a slow reader; then the socket waits
_TURN_FRAMES = 64
_TURN_BYTES = 256 * 1024
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

    async def some(self) -> list[tuple[int, bytes]]:
        """The next frames, as many as one turn of the loop may take; none when the stream has ended."""
        while not self._waiting:
            if self._ended or self._stream.closed:
                return []
            self._changed.clear()
            await self._changed.wait()
        taken: list[tuple[int, bytes]] = []
        size = 0
        while self._waiting and len(taken) < _TURN_FRAMES and size < _TURN_BYTES:
            frame = self._waiting.popleft()
            taken.append(frame)
            size += len(frame[1])
        self._size -= size
        if self._size <= _AHEAD // 2:
            self._stream.release()
        return taken


async def batches(stream: FrameStream, *, command: bool = False) -> AsyncGenerator[list[Event]]:
    """The events of an opened execution or command stream as they come, `End` last; closes it in the end.

    Raises ConnectionError when the stream ends without an end (follow the execution again from the last
    `seq`), ApiError(service_unavailable) when the agent breaks the protocol.
    """
    decode = _command_frame if command else _ExecutionDecoder().frame
    frames = _Frames(stream)
    try:
        while taken := await frames.some():
            found: list[Event] = []
            try:
                for frame in taken:
                    found += decode(*frame)
                    if found and isinstance(found[-1], End):
                        break
            except (BadKernelMessage, *UNREADABLE) as error:
                yield found
                raise broken("output that is not valid") from error
            except ApiError:
                yield found
                raise
            yield found
            if found and isinstance(found[-1], End):
                return
        raise ConnectionResetError("the agent's stream ended before the execution did")
    finally:
        stream.close()


async def events(stream: FrameStream, *, command: bool = False) -> AsyncGenerator[Event]:
    """The events of `batches`, one by one."""
    async with contextlib.aclosing(batches(stream, command=command)) as source:
        async for batch in source:
            for event in batch:
                yield event


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
            with contextlib.suppress(*UNREADABLE):  # how it ended is told by the agent
                self._reply = (seq, _content(parts[3], _Reply))
            return []
        found = _events(seq, kind, parts[3])
        if any(isinstance(event, ErrorEvent) for event in found):
            self._explained = True
        return found

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


def _events(seq: int, kind: str, part: memoryview) -> list[Event]:
    """What a message says. What cannot be read of it is left out, and a line on stderr says so."""
    try:
        event = _event(seq, kind, part)
    except UNREADABLE as error:
        event = _readable(seq, kind, part)
        note = f"[llmsafespace] {'parts' if event else 'the whole'} of a {kind} message could not be read, "
        note += f"and was left out: {error}\n"
        return [*([event] if event else []), Stderr(seq=seq, text=note)]
    return [] if event is None else [event]


def _readable(seq: int, kind: str, part: memoryview) -> Event | None:
    """A rich output without those of its members that are odd; None when nothing of it can be read."""
    if kind not in _BUNDLES:
        return None
    try:
        members = _content(part, dict[str, msgspec.Raw])
    except UNREADABLE:
        return None
    kept: dict[str, msgspec.Raw] = {}
    for name in ("data", "metadata", "transient"):
        with contextlib.suppress(KeyError, *UNREADABLE):
            msgspec.json.decode(msgspec.json.encode({name: members[name]}), type=_Bundle)
            kept[name] = members[name]
    return _event(seq, kind, memoryview(msgspec.json.encode(kept))) if "data" in kept else None


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
