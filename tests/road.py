"""The road between a client and a gateway: a TCP proxy that breaks in the ways roads break."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\nContent-Type: text/html\r\n"
    b"Connection: close\r\n\r\nno"
)
_PIECE = 16 * 1024


class Road:
    """Forwards connections to `port` on loopback, from any thread's view: it has an event loop of its own.

    `closed` refuses new connections; `cut` ends those that are there; `silence` leaves them open and
    forwards nothing more in either direction; `unavailable` answers that many new connections with 503;
    `cut_after` lists after how many bytes from the gateway each further connection breaks. `buffer` is how
    many bytes each of its sockets takes and does not forward yet; None leaves that to the system.
    """

    def __init__(self, port: int, *, buffer: int | None = None) -> None:
        self.port = 0
        self.connections = 0
        self.unavailable = 0
        self.cut_after: list[int] = []
        self.pause = 0.0  # seconds after each piece: a slow road
        self.piece = _PIECE
        self.on_bytes: Callable[[int], None] | None = None  # hears how many bytes came from the gateway
        self.silent_from_start = False
        self._target = port
        self._buffer = buffer
        self._ways: set[_Way] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """End every connection at once, as a killed gateway does."""
        self._run(self._cut())

    def silence(self) -> None:
        """Every connection stays open and carries nothing more."""
        self._run(self._silence())

    def close(self) -> None:
        """Refuse new connections."""
        self._run(self._close())

    def open(self) -> None:
        """Take connections again."""
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", self.port))

    def end(self) -> None:
        """Close everything."""
        self.close()
        self.cut()
        self._run(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self) -> None:
        for way in tuple(self._ways):
            way.cut()
        await asyncio.sleep(0)

    async def _silence(self) -> None:
        for way in self._ways:
            way.silent = True

    async def _ended(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _close(self) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.unavailable:
            self.unavailable -= 1
            await reader.read(65536)
            writer.write(UNAVAILABLE)
            await writer.drain()
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        for end in (writer, far_writer) if self._buffer is not None else ():
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, self._buffer)
        way = _Way(self, writer, far_writer, self.cut_after.pop(0) if self.cut_after else None)
        way.silent = self.silent_from_start
        self._ways.add(way)
        try:
            await asyncio.gather(way.pump(reader, far_writer, False), way.pump(far_reader, writer, True))
        finally:
            way.cut()
            self._ways.discard(way)


class _Way:
    """One connection."""

    def __init__(
        self, road: Road, near: asyncio.StreamWriter, far: asyncio.StreamWriter, cut_after: int | None
    ) -> None:
        self.silent = False
        self._road = road
        self._writers = (near, far)
        self._left = cut_after

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        try:
            while data := await reader.read(self._road.piece):
                while self.silent:
                    await asyncio.sleep(0.02)
                    if writer.transport.is_closing():
                        return
                if back and self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                writer.write(data)
                await writer.drain()
                if back and self._road.on_bytes is not None:
                    self._road.on_bytes(len(data))
                if back and self._left == 0:
                    await asyncio.sleep(0.01)
                    self.cut()
                    return
                if self._road.pause:
                    await asyncio.sleep(self._road.pause)
            writer.close()
        except ConnectionError:
            self.cut()
