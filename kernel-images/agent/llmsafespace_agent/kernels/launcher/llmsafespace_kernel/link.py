"""Small JSON documents over a unix stream socket, each with a 4-byte big-endian length; blocking."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any


class Link:
    """This side of the conversation with the agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(True)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self, message: dict[str, Any]) -> None:
        """Raises OSError when the agent is gone."""
        data = json.dumps(message).encode()
        self._sock.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> dict[str, Any] | None:
        """The next document, or None at the end of the stream."""
        received = self.receive_with_socket()
        return None if received is None else received[0]

    def receive_with_socket(self) -> tuple[dict[str, Any], socket.socket | None] | None:
        """The next document and the socket that came with it, or None at the end of the stream."""
        head, fds, _, _ = socket.recv_fds(self._sock, 4, 1)
        if len(head) < 4:
            head += self._exactly(4 - len(head)) if head else b""
        if len(head) < 4:
            return None
        data = self._exactly(struct.unpack(">I", head)[0])
        passed = socket.socket(fileno=fds[0]) if fds else None
        return json.loads(data), passed

    def _exactly(self, count: int) -> bytes:
        chunks = []
        while count:
            chunk = self._sock.recv(min(count, 1 << 20))
            if not chunk:
                return b""
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)
