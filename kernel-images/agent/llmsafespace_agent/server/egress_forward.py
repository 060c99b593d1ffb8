"""The way out of the sandbox: a loopback port whose connections are piped to the egress proxy."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_protocol.configuration import EgressForward, host_and_port
from llmsafespace_protocol.egress import preamble

_AT_ONCE = 256
_HIGH_WATER = 256 * 1024


class _Pipe(asyncio.Protocol):
    """One end of a connection; what it reads goes to the other end, as fast as that takes it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        if (
            self.other is not None
            and self.other.transport is not None
            and self.other.transport.can_write_eof()
        ):
            self.other.transport.write_eof()
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        other = self.other.transport if self.other is not None else None
        if other is not None and not other.is_closing():
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()
        self.other = None


class _Inbound(_Pipe):
    """The sandbox's end: connects to the proxy as soon as it is there."""

    def __init__(self, forward: Forwarder) -> None:
        super().__init__()
        self._forward = forward

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._forward.enter(self):
            transport.close()
            return
        # Not at once: some Pythons (as 3.11.2) begin to read after this method, whether it paused or not.
        asyncio.get_running_loop().call_soon(cast(asyncio.Transport, transport).pause_reading)
        self._connecting = asyncio.ensure_future(self._connect())

    def connection_lost(self, exc: Exception | None) -> None:
        self._forward.leave(self)
        super().connection_lost(exc)

    async def _connect(self) -> None:
        try:
            other = await self._forward.connect()
        except OSError:  # no proxy: the client sees its connection refused in mid-air
            if self.transport is not None:
                self.transport.abort()
            return
        if self.transport is None or self.transport.is_closing():
            if other.transport is not None:
                other.transport.close()
            return
        self.other, other.other = other, self
        self.transport.resume_reading()


class Forwarder:
    """Listens on a loopback port while it is open; at most 256 connections at once.

    `token` is what a proxy behind TCP knows the sandbox by; without one it is not even connected to.
    """

    def __init__(self, config: EgressForward) -> None:
        self.token: str | None = None
        self._path = config.unix
        self._proxy = host_and_port(config.proxy) if config.proxy is not None else None
        self._port = config.port
        self._server: asyncio.Server | None = None
        self._open: set[_Pipe] = set()

    async def start(self, inside: Inside) -> str | None:
        """Listen where the code is; returns why that is not possible."""
        loop = asyncio.get_running_loop()
        try:
            made = inside.listener(self._port)
            if made is None:
                self._server = await loop.create_server(lambda: _Inbound(self), "127.0.0.1", self._port)
            else:
                self._server = await loop.create_server(
                    lambda: _Inbound(self), sock=socket.socket(fileno=made)
                )
        except OSError as error:
            return f"there is no way out: port {self._port} cannot be listened on: {error}"
        return None

    async def connect(self) -> _Pipe:
        """A connection to the proxy, on which it knows the sandbox. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self._proxy is None:
            return (await loop.create_unix_connection(_Pipe, self._path))[1]
        if self.token is None:
            raise ConnectionRefusedError("nothing may leave this sandbox")
        transport, pipe = await loop.create_connection(_Pipe, *self._proxy)
        transport.write(preamble(self.token))
        return pipe

    def close(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        for pipe in tuple(self._open):
            if pipe.transport is not None:
                pipe.transport.abort()

    def enter(self, pipe: _Pipe) -> bool:
        """Whether there is room for one more connection."""
        if len(self._open) >= _AT_ONCE:
            return False
        self._open.add(pipe)
        return True

    def leave(self, pipe: _Pipe) -> None:
        """A connection has ended."""
        self._open.discard(pipe)
