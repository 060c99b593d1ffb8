"""Length-prefixed frames over one byte stream (a unix socket, or TLS over TCP).

A frame is `u32 length (big-endian) | u8 kind | body`; length counts the body only.

Large bodies are copied as little as possible. The socket reads into one buffer that all streams of a thread
share, and the frames in it are parsed before the loop runs anything else. The rest of a large body is read
directly into the bytearray that becomes the body. A large body is written by a call of its own, not joined.
"""

from __future__ import annotations

import asyncio
import enum
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

MAX_FRAME = 64 * 1024 * 1024
_HEAD = struct.Struct(">IB")
_HIGH_WATER = 256 * 1024
_SHARED = 256 * 1024  # bytes of the read buffer
_LARGE = 64 * 1024  # bytes; copying a larger body costs more than one more call
_TRUSTED = 2 * 1024 * 1024  # bytes reserved when a header announces a body; more only when data has arrived


class _Shared(threading.local):
    """The read buffer of a thread. Its content is parsed before the loop runs anything else."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SHARED))


_shared = _Shared()


class FrameKind(enum.IntEnum):
    """The kind of a frame's body."""

    JSON = 0  # one JSON document
    DATA = 1  # raw bytes of a file or of standard input
    KERNEL = 2  # a kernel message: `u64 seq | v1 bytes` from the agent, `v1 bytes` to it
    END = 3  # no more DATA follows; empty body


class FrameError(Exception):
    """A frame breaks the format or its size limit."""


class FrameStream(asyncio.BufferedProtocol):
    """One connection that carries frames.

    `receive` sets `on_frame(kind, body)`, which is called on the event loop for each complete frame, in
    order; it must not block. `body` is bytes; for a large kernel message it is a bytearray that nobody else
    uses. Before `receive` and after `hold()` the socket is not read, so that the peer slows down.
    `on_close(error)` is called once, when the connection has ended.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self.max_frame = max_frame  # bytes of a body; may be changed between frames
        self._rest = b""  # bytes that were read and are not parsed yet
        self._whole: deque[tuple[int, bytes]] = deque()  # complete frames that arrived while held
        self._kind = 0
        self._body: bytearray | None = None  # the body of a large frame, while it is being read
        self._filled = self._length = 0
        self._transport: asyncio.Transport | None = None
        self._on_frame: Callable[[int, bytes], None] | None = None
        self.on_close: Callable[[Exception | None], None] | None = None
        self._held = True
        self._parsing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()

    # -- reading ---------------------------------------------------------------------------------

    def receive(self, on_frame: Callable[[int, bytes], None]) -> None:
        """Pass every frame to `on_frame` from now on, including frames that have already arrived."""
        self._on_frame = on_frame
        self.release()

    def hold(self) -> None:
        """Stop delivering frames and stop reading the socket."""
        if not self._held:
            self._held = True
            if self._transport is not None:
                self._transport.pause_reading()

    def release(self) -> None:
        """Continue after `hold()`."""
        if self._held:
            self._held = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
            self._deliver_waiting()

    async def next_frame(self) -> tuple[int, bytes]:
        """Return the next frame (kind, body); the stream is held again afterwards.

        Raises ConnectionError if the connection ends first.
        """
        got: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

        def take(kind: int, body: bytes) -> None:
            self.hold()
            self._on_frame = None
            if not got.done():
                got.set_result((kind, body))

        self.receive(take)
        closed = asyncio.ensure_future(self._closed.wait())
        waiting: set[asyncio.Future[Any]] = {got, closed}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
        if not got.done():
            raise ConnectionResetError("the connection ended before a whole frame arrived")
        return got.result()

    # -- writing ---------------------------------------------------------------------------------

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        """Queue one frame whose body is `parts` in order. Does nothing after the connection has ended.

        Raises FrameError if the body is larger than the stream's limit.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        length = sum(len(part) for part in parts)
        if length > self.max_frame:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self.max_frame}")
        head = _HEAD.pack(length, kind)
        if length <= _LARGE:
            transport.write(b"".join((head, *parts)))
            return
        *first, last = parts
        transport.write(b"".join((head, *first)))
        transport.write(last)

    async def drain(self) -> None:
        """Wait until the write buffer is below its high-water mark, or the connection has ended."""
        await self._writable.wait()

    @property
    def writable(self) -> bool:
        """False while the write buffer is above its high-water mark."""
        return self._writable.is_set()

    def close(self) -> None:
        """Send what is queued, then end the connection."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, from either side."""
        await self._closed.wait()

    @property
    def closed(self) -> bool:
        """True once the connection has ended."""
        return self._closed.is_set()

    @property
    def transport(self) -> asyncio.Transport:
        """The asyncio transport. Raises ConnectionError before the connection is made."""
        if self._transport is None:
            raise ConnectionError("not connected")
        return self._transport

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        if self._held:
            self._transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        return _shared.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            read = _shared.view[:nbytes]
            self._rest = self._parse(self._rest + read if self._rest else read)
            return
        self._filled += nbytes
        if self._filled < len(self._body):
            return
        if self._filled < self._length:  # the peer has sent what it announced so far: reserve the whole body
            whole = bytearray(self._length)
            whole[: self._filled] = self._body
            self._body = whole
            return
        body, self._body = self._body, None
        self._deliver(self._kind, cast(bytes, body) if self._kind == FrameKind.KERNEL else bytes(body))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._closed.set()
        if self.on_close is not None:
            self.on_close(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _deliver(self, kind: int, body: bytes) -> None:
        if self._held or self._on_frame is None or self._whole:
            self._whole.append((kind, body))
        else:
            self._on_frame(kind, body)

    def _deliver_waiting(self) -> None:
        """Deliver what arrived before the stream was released."""
        if self._parsing:  # a callback released the stream: the `_parse` that called it continues
            return
        while self._whole and not self._held and self._on_frame is not None:
            self._on_frame(*self._whole.popleft())
        if self._rest and not self._whole:
            rest, self._rest = self._rest, b""
            self._rest = self._parse(rest)

    def _parse(self, data: bytes | memoryview) -> bytes:
        """Deliver the complete frames in `data`; return the rest of it."""
        self._parsing = True
        view = memoryview(data)
        start = 0
        try:
            while not self._held and self._on_frame is not None and len(view) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(view, start)
                if length > self.max_frame:
                    self.abort()
                    return b""
                begin, end = start + _HEAD.size, start + _HEAD.size + length
                if end <= len(view):
                    start = end
                    self._on_frame(kind, bytes(view[begin:end]))
                elif length > _LARGE:
                    self._begin_large(kind, length, view[begin:])
                    return b""
                else:
                    break
        finally:
            self._parsing = False
        return bytes(view[start:])

    def _begin_large(self, kind: int, length: int, read: memoryview) -> None:
        """Prepare to read the rest of a large body directly into the bytearray that becomes the body."""
        self._kind, self._length, self._filled = kind, length, len(read)
        self._body = bytearray(min(length, _TRUSTED))
        self._body[: len(read)] = read
