"""Who connects: the proof, then the stream that was asked for. Nothing from a peer is trusted before it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

import msgspec

from llmsafespace_agent.server import certificate
from llmsafespace_agent.server.channels import ChannelsStream
from llmsafespace_agent.server.command_stream import CommandStream
from llmsafespace_agent.server.errors import AgentError
from llmsafespace_agent.server.execution_stream import open_execution
from llmsafespace_agent.server.file_streams import read_file, watch_files, write_file
from llmsafespace_agent.server.rpc import RpcStream
from llmsafespace_protocol.configuration import Listen
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import ProofError, fingerprint, prove_as_agent
from llmsafespace_protocol.requests import (
    Error,
    Open,
    OpenChannels,
    OpenCommand,
    Opened,
    OpenExecution,
    OpenFileRead,
    OpenFileWatch,
    OpenFileWrite,
    OpenRpc,
)

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent

_log = logging.getLogger(__name__)
_UNPROVED = 64  # connections whose peer has not proved itself yet
_STREAMS = 4096
_BACKLOG = 512


class Connections:
    """Listens, and serves every stream until it ends."""

    def __init__(self, agent: Agent, listen: Listen, token: bytes) -> None:
        self._agent = agent
        self._listen = listen
        self._token = token
        self._fingerprint = ""
        self._server: asyncio.Server | None = None
        self._unproved = 0
        self._serving: set[asyncio.Task[None]] = set()
        self._streams: set[FrameStream] = set()

    async def start(self, pending_certificate: int | None, folder: str) -> None:
        """Listen. Raises OSError when that is not possible, RuntimeError without a certificate."""
        loop = asyncio.get_running_loop()
        if self._listen.unix is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listen.unix)
            self._server = await loop.create_unix_server(self._accept, self._listen.unix, backlog=_BACKLOG)
            return
        if self._listen.fd is not None:
            listening = socket.socket(fileno=self._listen.fd)
            listening.set_inheritable(False)
            self._server = await loop.create_unix_server(self._accept, sock=listening, backlog=_BACKLOG)
            return
        context: ssl.SSLContext | None = None
        if pending_certificate is not None:
            context, der = certificate.finish(pending_certificate, folder)
            self._fingerprint = fingerprint(der)
        self._server = await loop.create_server(
            self._accept, self._listen.host, self._listen.port, ssl=context, backlog=_BACKLOG
        )

    @property
    def streams(self) -> int:
        """How many proved streams are open."""
        return len(self._streams)

    async def close(self, patience: float) -> None:
        """Listen no more; what was sent may still be read for `patience` seconds."""
        if self._server is not None:
            self._server.close()
        for stream in tuple(self._streams):
            stream.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for stream in tuple(self._streams):
                    await stream.wait_closed()
        for stream in tuple(self._streams):
            stream.abort()
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        if self._listen.unix is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._listen.unix)

    def _accept(self) -> FrameStream:
        return _Incoming(self)

    def arrived(self, stream: FrameStream) -> None:
        """A connection stands; serve it unless there are too many."""
        if self._unproved >= _UNPROVED or len(self._streams) >= _STREAMS:
            stream.abort()
            return
        self._unproved += 1
        task = asyncio.ensure_future(self._serve(stream))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, stream: FrameStream) -> None:
        try:
            wanted = await prove_as_agent(stream, self._token, self._fingerprint)
        except ProofError as error:
            _log.warning("a connection was refused: %s", error)
            return
        finally:
            self._unproved -= 1
        self._streams.add(stream)
        try:
            await self._open(stream, wanted)
            await stream.wait_closed()
        except ConnectionError:
            stream.abort()
        finally:
            self._streams.discard(stream)

    async def _open(self, stream: FrameStream, wanted: dict[str, Any]) -> None:
        try:
            await serve(self._agent, stream, msgspec.convert(wanted, Open))
        except msgspec.ValidationError as error:
            _refuse(stream, Error("invalid_request", f"this stream cannot be opened: {error}"))
        except AgentError as error:
            _refuse(stream, error.on_wire())
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a stream failed")
            _refuse(stream, Error("internal_error", "the agent failed to serve this stream"))


class _Incoming(FrameStream):
    """A stream that reports its arrival."""

    def __init__(self, connections: Connections) -> None:
        super().__init__()
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        connected: socket.socket | None = transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.arrived(self)


def _refuse(stream: FrameStream, error: Error) -> None:
    stream.send(FrameKind.JSON, msgspec.json.encode(Opened(error=error)))
    stream.close()


async def serve(agent: Agent, stream: FrameStream, open_: Open) -> None:
    """Serve what the gateway opened; returns when the stream looks after itself. Raises AgentError."""
    if isinstance(open_, OpenRpc):
        RpcStream(agent, stream).start()
        return
    agent.require_bound()
    agent.activity()
    if isinstance(open_, OpenChannels):
        ChannelsStream(agent, stream, open_).start()
    elif isinstance(open_, OpenExecution):
        await open_execution(agent, stream, open_)
    elif isinstance(open_, OpenCommand):
        CommandStream(agent, stream, open_).start()
    else:
        await _serve_file(agent, stream, open_)


async def _serve_file(
    agent: Agent, stream: FrameStream, open_: OpenFileRead | OpenFileWrite | OpenFileWatch
) -> None:
    agent.connected += 1
    try:
        if isinstance(open_, OpenFileRead):
            await read_file(agent, stream, open_)
        elif isinstance(open_, OpenFileWrite):
            await write_file(agent, stream, open_)
        else:
            await watch_files(agent, stream, open_)
        stream.close()
    finally:
        agent.connected -= 1
        agent.activity()
