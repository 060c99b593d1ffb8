"""Length-prefixed frames over one byte stream (a unix socket, or TLS over TCP).

A frame is `u32 length (big-endian) | u8 kind | body`; length counts the body only.

Bulk is copied as seldom as can be: the socket reads into one buffer that all streams of a thread share, and
frames are parsed there before anything else happens; the rest of a large body is read straight into the
bytearray that becomes the body. Large bodies are written by themselves, without a join.
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
_SHARED = 256 * 1024  # bytes of the buffer that is read into
_LARGE = 64 * 1024  # bytes of a body from which a copy costs more than a further call
_TRUSTED = 2 * 1024 * 1024  # bytes that a peer's word alone makes us reserve


class _Shared(threading.local):
    """The read buffer of a thread: what is read is parsed before its loop does anything else."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(_SHARED))


_shared = _Shared()


class FrameKind(enum.IntEnum):
    """What a frame's body is."""

    JSON = 0  # one JSON document
    DATA = 1  # raw bytes of a file or of standard input
    KERNEL = 2  # a kernel message: `u64 seq | v1 bytes` from the agent, `v1 bytes` to it
    END = 3  # no more DATA follows; empty body


class FrameError(Exception):
    """The peer broke the frame format; the connection cannot go on."""


class FrameStream(asyncio.BufferedProtocol):
    """One connection that carries frames.

    `on_frame(kind, body)` is called on the event loop for each whole frame, in order; it must not block.
    Bodies are bytes; a large one of a kernel message is a bytearray that nobody else uses.
    Before it is set, and after `hold()`, frames wait unread in the socket, so that the peer slows down.
    `on_close(error)` is called once, when the connection has ended.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._rest = b""  # was read and is not parsed yet
        self._whole: deque[tuple[int, bytes]] = deque()  # came while the stream was held
        self._kind = 0
        self._body: bytearray | None = None  # of a large frame that is being read
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
        """Hand every frame from now on to `on_frame`, those that already arrived included."""
        self._on_frame = on_frame
        self.release()

    def hold(self) -> None:
        """Stop handing out frames and stop reading the socket."""
        if not self._held:
            self._held = True
            if self._transport is not None:
                self._transport.pause_reading()

    def release(self) -> None:
        """Go on after `hold()`."""
        if self._held:
            self._held = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
            self._again()

    async def next_frame(self) -> tuple[int, bytes]:
        """The next frame alone; the stream is held again afterwards.

        Raises ConnectionError when the connection ends first.
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
        """Queue one frame whose body is `parts` in order. Does nothing after the connection has ended."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        length = sum(len(part) for part in parts)
        if length > self._max_frame:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self._max_frame}")
        head = _HEAD.pack(length, kind)
        if length <= _LARGE:
            transport.write(b"".join((head, *parts)))
            return
        *first, last = parts
        transport.write(b"".join((head, *first)))
        transport.write(last)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was sent, or the connection has ended."""
        await self._writable.wait()

    @property
    def writable(self) -> bool:
        """False while more than the high-water mark waits to be sent."""
        return self._writable.is_set()

    def close(self) -> None:
        """End the connection after what was queued has been sent."""
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
        """The transport below. Raises ConnectionError before the connection stands."""
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
        if self._filled < self._length:  # the peer means it: room for all of it
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

    def _again(self) -> None:
        """Hand out what came before the stream was released."""
        if self._parsing:  # a callback released the stream: whoever called it goes on by itself
            return
        while self._whole and not self._held and self._on_frame is not None:
            self._on_frame(*self._whole.popleft())
        if self._rest and not self._whole:
            rest, self._rest = self._rest, b""
            self._rest = self._parse(rest)

    def _parse(self, data: bytes | memoryview) -> bytes:
        """Hand out the whole frames in `data`; returns what is left of it."""
        self._parsing = True
        view = memoryview(data)
        start = 0
        try:
            while not self._held and self._on_frame is not None and len(view) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(view, start)
                if length > self._max_frame:
                    self.abort()
                    return b""
                begin, end = start + _HEAD.size, start + _HEAD.size + length
                if end <= len(view):
                    start = end
                    self._on_frame(kind, bytes(view[begin:end]))
                elif length > _LARGE:
                    self._begin(kind, length, view[begin:])
                    return b""
                else:
                    break
        finally:
            self._parsing = False
        return bytes(view[start:])

    def _begin(self, kind: int, length: int, read: memoryview) -> None:
        """Read the rest of a large body straight into its place."""
        self._kind, self._length, self._filled = kind, length, len(read)
        self._body = bytearray(min(length, _TRUSTED))
        self._body[: len(read)] = read
