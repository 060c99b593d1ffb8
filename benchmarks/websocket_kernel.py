"""A minimal kernel client over the v1 websocket protocol: the same for every gateway that is measured."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import uuid
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

V1 = "v1.kernel.websocket.jupyter.org"


def pack(channel: str, header: dict[str, Any], content: dict[str, Any]) -> bytes:
    """The v1 bytes of a request."""
    parts = [channel.encode(), json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
    count = len(parts) + 1
    offsets = [8 * (count + 1)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{count + 1}Q", count, *offsets) + b"".join(parts)


def parts_of(message: bytes) -> list[bytes]:
    """Channel, header, parent header, metadata, content and buffers of v1 bytes."""
    (count,) = struct.unpack_from("<Q", message)
    offsets = struct.unpack_from(f"<{count}Q", message, 8)
    return [message[a:b] for a, b in itertools.pairwise(offsets)]


class WebsocketKernel:
    """One connection to one kernel's channels."""

    def __init__(self, socket: ClientConnection, legacy: bool) -> None:
        self.socket = socket
        self._legacy = legacy
        self._session = uuid.uuid4().hex

    @classmethod
    async def open(cls, url: str, key: str, legacy: bool = False) -> WebsocketKernel:
        """Connect to `url` (…/api/kernels/{id}/channels)."""
        socket = await connect(
            url,
            additional_headers={"Authorization": f"token {key}"},
            subprotocols=None if legacy else [V1],  # type: ignore[list-item]
            compression=None,
            max_size=None,
            max_queue=64,
        )
        return cls(socket, legacy)

    async def close(self) -> None:
        """Close the connection."""
        await self.socket.close()

    async def send(self, msg_type: str, content: dict[str, Any], channel: str = "shell") -> str:
        """Send a request and return its msg_id."""
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self._session,
            "username": "",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.4",
        }
        if self._legacy:
            whole = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
            await self.socket.send(json.dumps({**whole, "channel": channel, "buffers": []}))
        else:
            await self.socket.send(pack(channel, header, content))
        return msg_id

    async def execute(self, code: str, wait_reply: bool = True) -> Outcome:
        """Run `code` and wait for its reply and idle."""
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        msg_id = await self.send("execute_request", content)
        return await self.outcome(msg_id)

    async def outcome(self, msg_id: str, timeout: float = 120.0) -> Outcome:
        """Everything that belongs to `msg_id`, up to its reply and idle."""
        outcome = Outcome()
        async with asyncio.timeout(timeout):
            while not (outcome.replied and outcome.idle):
                self._take(await self.socket.recv(), msg_id, outcome)
        return outcome

    def _take(self, frame: str | bytes, msg_id: str, outcome: Outcome) -> None:
        if isinstance(frame, str):
            whole = json.loads(frame)
            if whole["parent_header"].get("msg_id") == msg_id:
                outcome.add(whole["header"]["msg_type"], whole["content"], len(frame))
            return
        _, header, parent, _, content, *_ = parts_of(frame)
        if msg_id.encode() in parent:
            msg_type = json.loads(header)["msg_type"]
            outcome.add(msg_type, content, len(frame))


class Outcome:
    """What one execution sent."""

    def __init__(self) -> None:
        self.replied = False
        self.idle = False
        self.displays = 0
        self.stdout = 0
        self.bytes = 0
        self.reply: Any = None

    def add(self, msg_type: str, content: bytes | dict[str, Any], size: int) -> None:
        """Count one message."""
        self.bytes += size
        if msg_type == "display_data":
            self.displays += 1
        elif msg_type == "stream":
            self.stdout += len(_decoded(content)["text"])
        elif msg_type == "execute_reply":
            self.replied, self.reply = True, _decoded(content)
        elif msg_type == "status" and _decoded(content)["execution_state"] == "idle":
            self.idle = True


def _decoded(content: bytes | dict[str, Any]) -> dict[str, Any]:
    return content if isinstance(content, dict) else json.loads(content)
