"""The ZeroMQ side of the bridge: what a local kernel would bind, for any number of clients."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import zmq.asyncio
from zmq.constants import SocketOption, SocketType

from llmsafespace import messages
from llmsafespace.decoding import BadMessage
from llmsafespace.jupyter.zmq_messages import Signer, WrongSignature, address
from llmsafespace.messages import Message

log = logging.getLogger("llmsafespace.bridge")
_REMEMBERED = 10_000  # requests whose senders are known; older ones have had their reply
Take = Callable[[str, list[bytes]], Awaitable[None]]


class KernelSockets:
    """ROUTER sockets for shell, control and stdin, XPUB for iopub, REP for the heartbeat.

    `take` is called with the channel and the parts of each message of a client.
    """

    def __init__(self, connection: Mapping[str, Any], take: Take) -> None:
        self._signer = Signer(connection)
        self._take = take
        self.beating = asyncio.Event()  # cleared while the kernel is dead
        self.beating.set()
        self._context = zmq.asyncio.Context()
        self._session = messages.new_id()
        self._senders: OrderedDict[str, list[bytes]] = OrderedDict()
        self._sockets = {
            "shell": self._bind(connection, "shell", SocketType.ROUTER),
            "control": self._bind(connection, "control", SocketType.ROUTER),
            "stdin": self._bind(connection, "stdin", SocketType.ROUTER),
            "iopub": self._bind(connection, "iopub", SocketType.XPUB),
            "hb": self._bind(connection, "hb", SocketType.REP),
        }
        self._tasks = [asyncio.ensure_future(self._listen(name)) for name in ("shell", "control", "stdin")]
        self._tasks += [asyncio.ensure_future(self._welcome()), asyncio.ensure_future(self._beat())]

    def _bind(self, connection: Mapping[str, Any], channel: str, kind: int) -> zmq.asyncio.Socket:
        socket = self._context.socket(kind)
        socket.linger = 1000
        socket.sndhwm = 0  # nothing is dropped for a slow client
        socket.rcvhwm = 0
        if kind == SocketType.ROUTER:
            socket.router_handover = 1
        if kind == SocketType.XPUB:
            socket.setsockopt(SocketOption.XPUB_VERBOSE, 1)
        socket.bind(address(connection, channel))
        return socket

    async def send(self, message: Message) -> None:
        """Send a message of the kernel's to whom it is for."""
        if message.channel == "iopub":
            msg_type = message.header().msg_type
            if msg_type != "iopub_welcome":  # each of our clients is welcomed by this socket itself
                await self._send("iopub", [msg_type.encode()], message.parts)
            return
        parent = message.parent().msg_id
        identities = self._senders.get(parent)
        if identities is None:
            log.debug("nobody here asked for %s on %s", message.header().msg_type, message.channel)
            return
        if message.channel != "stdin":
            del self._senders[parent]
            self._senders[parent] = identities  # stdin and late replies still find it
        await self._send(message.channel, identities, message.parts)

    async def say(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        parent: bytes = b"{}",
    ) -> None:
        """Send a message of the bridge's own."""
        header = msgspec.json.encode(messages.header(msg_type, self._session))
        parts = [header, parent, b"{}", msgspec.json.encode(content)]
        await self.send(Message(channel, parts))

    async def _send(
        self, channel: str, identities: Sequence[bytes], parts: Sequence[bytes | memoryview]
    ) -> None:
        await self._sockets[channel].send_multipart(self._signer.wrap(identities, parts), copy=True)

    async def _listen(self, channel: str) -> None:
        while True:
            frames = await self._sockets[channel].recv_multipart()
            try:
                identities, parts = self._signer.unwrap(frames)
                header = messages.decode_header(parts[0])
            except (WrongSignature, BadMessage) as error:
                log.warning("a message on %s was dropped: %s", channel, error)
                continue
            if channel != "stdin":
                self._senders[header.msg_id] = identities
                while len(self._senders) > _REMEMBERED:
                    self._senders.popitem(last=False)
            await self._take(channel, parts)

    async def _welcome(self) -> None:
        """Tell each new subscriber that it will hear everything from now on (JEP 65)."""
        socket = self._sockets["iopub"]
        while True:
            frame = await socket.recv()
            if frame[:1] == b"\x01":
                topic = frame[1:]
                header = msgspec.json.encode(messages.header("iopub_welcome", self._session))
                content = msgspec.json.encode({"subscription": topic.decode("utf-8", "replace")})
                await self._send("iopub", [topic] if topic else [], [header, b"{}", b"{}", content])

    async def _beat(self) -> None:
        socket = self._sockets["hb"]
        while True:
            beat = await socket.recv()
            await self.beating.wait()
            await socket.send(beat)

    async def close(self) -> None:
        """Close the sockets; what was sent is given a second to leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in self._sockets.values():
            socket.close()
        await asyncio.to_thread(self._context.term)
