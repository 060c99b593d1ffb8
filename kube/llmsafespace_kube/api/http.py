"""The part of HTTP/1.1 that calls of the API server need, over connections that are reused.

Calls are most of the operator's work, and the transport of a library such as aiohttp takes more than half of
the CPU time of a call (docs/decisions/an-http-client-of-our-own.md). `server.py` finds the API server's
address and credentials.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple
from urllib.parse import urlsplit

CONNECT_LIMIT = 5.0  # seconds
_IDLE = 30.0  # seconds; shorter than the API server's limit, so that it does not close a connection in use
_BUFFER = 2**20  # bytes that are read ahead
_END = b"\r\n"


class NoConnection(Exception):
    """The connection could not be made, so nothing was sent."""


class BadAnswer(Exception):
    """The answer is not HTTP, or is incomplete."""


class Head(NamedTuple):
    """Status line and headers of an answer. `length` None: the body is chunked or ends with the stream."""

    status: int
    length: int | None
    chunked: bool
    keep_alive: bool  # the connection can be used again
    retry_after: str  # the header's value, "" without it


class Connection:
    """One connection. It carries one request at a time; read the whole answer before the next request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._idle_since = time.monotonic()

    async def send(self, request: bytes) -> Head:
        """Send the request and return the head of its answer. Raises OSError and BadAnswer."""
        self._writer.write(request)
        await self._writer.drain()
        while True:
            try:
                head = parse_head(await self._reader.readuntil(_END + _END))
            except asyncio.IncompleteReadError:
                raise BadAnswer("it was closed before the answer began") from None
            except asyncio.LimitOverrunError:
                raise BadAnswer("the head of the answer is too long") from None
            if head.status >= 200:
                return head

    async def pieces(self, head: Head) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body as they arrive. Raises OSError and BadAnswer."""
        try:
            if head.length is not None:
                yield await self._reader.readexactly(head.length)
            elif head.chunked:
                while size := int((await self._reader.readuntil(_END)).partition(b";")[0], 16):
                    yield (await self._reader.readexactly(size + 2))[:-2]
                while await self._reader.readuntil(_END) != _END:  # trailers
                    pass
            else:
                while piece := await self._reader.read(_BUFFER):
                    yield piece
        except asyncio.IncompleteReadError:
            raise BadAnswer("it was closed before the answer was complete") from None
        except (asyncio.LimitOverrunError, ValueError):
            raise BadAnswer("the answer is malformed") from None

    async def body(self, head: Head) -> bytes:
        """Return the whole body. Raises OSError and BadAnswer."""
        return b"".join([piece async for piece in self.pieces(head)])

    @property
    def reusable(self) -> bool:
        """Whether the connection can be used for another request."""
        closed = self._reader.at_eof() or self._writer.is_closing()
        return not closed and time.monotonic() - self._idle_since < _IDLE

    def mark_idle(self) -> None:
        """The connection is idle from now on."""
        self._idle_since = time.monotonic()

    def close(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


class Endpoint:
    """The API server's address, and the idle connections to it."""

    def __init__(self, url: str, tls: ssl.SSLContext, server_name: str | None = None) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.authority = parts.netloc
        self.prefix = parts.path.rstrip("/")
        self._tls = tls if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._server_name = server_name or self.host
        self._idle: list[Connection] = []

    async def connection(self) -> Connection:
        """Return an idle connection or a new one; raises NoConnection."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return await self.connect()

    async def connect(self) -> Connection:
        """Make a new connection; raises NoConnection."""
        name = self._server_name if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                return Connection(
                    *await asyncio.open_connection(
                        self.host, self._port, ssl=self._tls, server_hostname=name, limit=_BUFFER
                    )
                )
        except TimeoutError:
            raise NoConnection(f"no connection within {CONNECT_LIMIT:g} s") from None
        except OSError as error:
            raise NoConnection(str(error)) from None

    def keep(self, connection: Connection) -> None:
        """Keep the connection for another request. Its last answer must have been read to the end."""
        connection.mark_idle()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def parse_head(text: bytes) -> Head:
    """Parse status line and headers, the empty line included; raises BadAnswer."""
    status, *lines = text[:-4].split(_END)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    try:
        version, code, *_ = status.split(b" ")
        length = headers.get(b"content-length")
        size = int(length) if length is not None else None
        chunked = headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        if int(code) in (204, 304):
            size, chunked = 0, False
        keep_alive = version == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
        return Head(
            status=int(code),
            length=None if chunked else size,
            chunked=chunked,
            keep_alive=keep_alive and (chunked or size is not None),
            retry_after=headers.get(b"retry-after", b"").decode("ascii"),
        )
    except ValueError:
        raise BadAnswer("the API server did not answer in HTTP") from None
