"""Finds out whether a websocket's client is still there: pings it, and cuts what has gone silent.

Bytes count, not only whole messages and pongs: on a slow road a large message takes minutes, and pings and
pongs wait behind it. A client that has not taken what was sent cannot answer either, and is not judged: TCP
finds out whether it lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

PING_EVERY = 30.0
SILENCE_LIMIT = 90.0


class Liveness:
    """Watches one client's `stream` (a tornado IOStream) from `start()` to `stop()`.

    `waits()` says whether bytes wait for the socket; `ping()` sends a ping; `cut()` ends the connection.
    """

    def __init__(
        self, stream: Any, waits: Callable[[], bool], ping: Callable[[], None], cut: Callable[[], None]
    ) -> None:
        self._waits = waits
        self._ping = ping
        self._cut = cut
        self._heard = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._stream = stream
        self._read = stream.read_from_fd
        stream.read_from_fd = self._noted

    def start(self) -> None:
        """Begin."""
        self._timer = asyncio.get_running_loop().call_later(PING_EVERY, self._look)

    def stop(self) -> None:
        """End: nothing is called any more."""
        if self._timer is not None:
            self._timer.cancel()
        vars(self._stream).pop("read_from_fd", None)

    def _noted(self, buffer: bytearray | memoryview) -> int | None:
        """In the stream's place, read what came."""
        try:
            size: int | None = self._read(buffer)
        finally:
            del buffer  # as tornado does: a buffer that a traceback holds cannot be resized
        if size:
            self._heard = time.monotonic()
        return size

    def _look(self) -> None:
        self.start()
        if self._waits():
            self._heard = time.monotonic()  # it has as long as any other once everything is sent
        elif time.monotonic() - self._heard > SILENCE_LIMIT:
            self._cut()
        else:
            self._ping()
