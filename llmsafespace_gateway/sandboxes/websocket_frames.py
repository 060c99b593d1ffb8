"""Writes websocket frames as cheaply as they can be written: no task and no copy per frame."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from functools import partial
from typing import Protocol

from tornado.iostream import StreamClosedError

TEXT = 1
BINARY = 2

_FIN = 0x80
_MEDIUM = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")
_FLUSH_AT = 64 * 1024
_ALONE = 64 * 1024


class ByteStream(Protocol):
    """The part of tornado's IOStream that is needed here."""

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Take all of `data`; the future is done when the socket has it. Raises StreamClosedError."""


def frame_head(opcode: int, size: int) -> bytes:
    """The head of an unfragmented, unmasked frame (RFC 6455, section 5.2)."""
    if size < 126:
        return bytes((_FIN | opcode, size))
    if size <= 0xFFFF:
        return _MEDIUM.pack(_FIN | opcode, 126, size)
    return _LONG.pack(_FIN | opcode, 127, size)


class FrameWriter:
    """Frames towards one client.

    Frames of one turn of the event loop leave in one write. `on_flushed(mark)` is called when the socket
    has taken everything up to a frame; `mark` is the highest mark among those frames. `on_lost()` is called
    when the connection has ended, so that nothing more will be taken.
    """

    def __init__(
        self, stream: ByteStream, on_flushed: Callable[[int], None], on_lost: Callable[[], None]
    ) -> None:
        self._stream = stream
        self._on_flushed = on_flushed
        self._on_lost = on_lost
        self._call_soon = asyncio.get_running_loop().call_soon
        self._queue: list[bytes | memoryview] = []
        self._queued = 0
        self._writing = 0
        self._mark = 0
        self._scheduled = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self._queued + self._writing

    def send(self, opcode: int, payload: bytes | memoryview, mark: int = 0) -> None:
        """Queue one frame. Does nothing after `close()` or when the connection has ended."""
        if self._closed:
            return
        size = len(payload)
        head = frame_head(opcode, size)
        self._queue.append(head)
        if size > _ALONE:  # not worth a copy
            self._queued += len(head)
            self.flush()
            self._mark = max(self._mark, mark)
            self._write(payload, size)
            return
        self._queue.append(payload)
        self._queued += len(head) + size
        if mark > self._mark:
            self._mark = mark
        if self._queued >= _FLUSH_AT:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._call_soon(self._turn_ended)

    def flush(self) -> None:
        """Hand what is queued to the socket now."""
        if self._queue:
            data = b"".join(self._queue)
            self._queue.clear()
            self._queued = 0
            self._write(data, len(data))

    def close(self) -> None:
        """Flush, and take no more frames."""
        self.flush()
        self._closed = True

    def _turn_ended(self) -> None:
        self._scheduled = False
        self.flush()

    def _write(self, data: bytes | memoryview, size: int) -> None:
        if self._closed:
            return
        try:
            future = self._stream.write(data)
        except StreamClosedError:
            self._lost()
            return
        if future.done() and future.exception() is None:
            self._on_flushed(self._mark)
            return
        self._writing += size
        future.add_done_callback(partial(self._written, size, self._mark))

    def _written(self, size: int, mark: int, future: asyncio.Future[None]) -> None:
        self._writing -= size
        if future.cancelled() or future.exception() is not None:
            self._lost()
            return
        self._on_flushed(mark)

    def _lost(self) -> None:
        self._closed = True
        self._on_lost()
