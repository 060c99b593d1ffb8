"""Length-prefixed frames over one byte stream (a unix socket, or TLS over TCP).

A frame is `u32 length (big-endian) | u8 kind | body`; length counts the body only.
"""

from __future__ import annotations

import asyncio
import enum
import struct
from collections.abc import Callable
from typing import Any, cast

MAX_FRAME = 64 * 1024 * 1024
_HEAD = struct.Struct(">IB")
_HIGH_WATER = 256 * 1024


class FrameKind(enum.IntEnum):
    """What a frame's body is."""

    JSON = 0  # one JSON document
    DATA = 1  # raw bytes of a file or of standard input
    KERNEL = 2  # a kernel message: `u64 seq | v1 bytes` from the agent, `v1 bytes` to it
    END = 3  # no more DATA follows; empty body


class FrameError(Exception):
    """The peer broke the frame format; the connection cannot go on."""


class FrameStream(asyncio.Protocol):
    """One connection that carries frames.

    `on_frame(kind, body)` is called on the event loop for each whole frame, in order; it must not block.
    Before it is set, and after `hold()`, frames wait unread in the socket, so that the peer slows down.
    `on_close(error)` is called once, when the connection has ended.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()
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
            self._parse()

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
        transport.write(b"".join((_HEAD.pack(length, kind), *parts)))

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

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._parse()

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

    def _parse(self) -> None:
        if self._parsing:  # a callback released the stream: the loop below goes on by itself
            return
        self._parsing = True
        buffer = self._buffer
        start = 0
        try:
            while not self._held and self._on_frame is not None and len(buffer) - start >= _HEAD.size:
                length, kind = _HEAD.unpack_from(buffer, start)
                if length > self._max_frame:
                    self.abort()
                    break
                end = start + _HEAD.size + length
                if len(buffer) < end:
                    break
                with memoryview(buffer) as view:
                    body = bytes(view[start + _HEAD.size : end])
                start = end
                self._on_frame(kind, body)
        finally:
            del buffer[:start]
            self._parsing = False
