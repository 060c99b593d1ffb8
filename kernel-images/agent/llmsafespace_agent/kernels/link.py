"""The agent's side of the conversation with a template or a kernel that is being started.

Small JSON documents over a unix stream socket, each with a 4-byte big-endian length.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_LARGEST = 1 << 20


class LinkClosed(ConnectionError):
    """The other side has gone."""


class Link:
    """Made by `pair`; the other end goes to the process."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Link, socket.socket]:
        """Our end, and the end to hand over (close it afterwards)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), theirs

    async def send(self, message: dict[str, Any], passed: socket.socket | None = None) -> None:
        """Send a document, and a socket with it. Raises LinkClosed."""
        data = json.dumps(message).encode()
        head = struct.pack(">I", len(data))
        try:
            if passed is not None:
                socket.send_fds(self._sock, [head], [passed.fileno()])
                head = b""
            await asyncio.get_running_loop().sock_sendall(self._sock, head + data)
        except OSError as error:
            raise LinkClosed(str(error)) from error

    async def receive(self) -> dict[str, Any]:
        """The next document. Raises LinkClosed at the end, or when it is none."""
        (size,) = struct.unpack(">I", await self._exactly(4))
        if size > _LARGEST:
            raise LinkClosed("a message of the kernel's launcher is too long")
        try:
            document = json.loads(await self._exactly(size))
        except ValueError as error:
            raise LinkClosed(f"not a message of the kernel's launcher: {error}") from error
        if not isinstance(document, dict):
            raise LinkClosed("not a message of the kernel's launcher")
        return document

    async def _exactly(self, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < count:
            try:
                chunk = await loop.sock_recv(self._sock, count - len(data))
            except OSError as error:
                raise LinkClosed(str(error)) from error
            if not chunk:
                raise LinkClosed("the process has ended")
            data += chunk
        return data

    def close(self) -> None:
        """Close our end: a template, or a parked kernel, ends by that."""
        self._sock.close()
