"""HTTP/1.1 over kept connections, as far as the API server needs it.

A library's transport, as aiohttp, takes more than half of the CPU of a call, and calls are most of what the
operator does. Where the API server is, and with which credentials, `server.py` finds out.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator
from typing import NamedTuple
from urllib.parse import urlsplit

CONNECT_LIMIT = 5.0  # seconds
_IDLE = 30.0  # seconds; the API server keeps idle connections longer, so that none is cut as it is used
_BUFFER = 2**20  # bytes that are read ahead of their use
_END = b"\r\n"


class NoConnection(Exception):
    """Nothing was sent, as there was no connection."""


class BadAnswer(Exception):
    """What came was no HTTP, or ended before its end."""


class Head(NamedTuple):
    """The beginning of an answer. `length` None: it comes in chunks, or ends with the connection."""

    status: int
    length: int | None
    chunked: bool
    kept: bool  # the connection can be used again
    retry_after: str


class Connection:
    """One connection: a request, then all of its answer, then perhaps another request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._since = time.monotonic()

    async def send(self, request: bytes) -> Head:
        """Send the request and return the head of its answer; raises OSError, BadAnswer."""
        self._writer.write(request)
        await self._writer.drain()
        while True:
            try:
                head = parse_head(await self._reader.readuntil(_END + _END))
            except asyncio.IncompleteReadError:
                raise BadAnswer("it was closed before an answer came") from None
            except asyncio.LimitOverrunError:
                raise BadAnswer("the head of its answer does not end") from None
            if head.status >= 200:
                return head

    async def pieces(self, head: Head) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
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
            raise BadAnswer("it was closed in the middle of an answer") from None
        except (asyncio.LimitOverrunError, ValueError):
            raise BadAnswer("an answer on it was malformed") from None

    async def body(self, head: Head) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.pieces(head)])

    @property
    def fresh(self) -> bool:
        """Whether it can be used for another request."""
        closed = self._reader.at_eof() or self._writer.is_closing()
        return not closed and time.monotonic() - self._since < _IDLE

    def rest(self) -> None:
        """It is not in use from now on."""
        self._since = time.monotonic()

    def close(self) -> None:
        """Close it at once."""
        self._writer.transport.abort()


class Endpoint:
    """Where connections lead, and those of them that are idle."""

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
        """One that is idle, or a new one; raises NoConnection."""
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh:
                return connection
            connection.close()
        return await self.connect()

    async def connect(self) -> Connection:
        """A new connection; raises NoConnection."""
        name = self._server_name if self._tls else None
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                return Connection(
                    *await asyncio.open_connection(
                        self.host, self._port, ssl=self._tls, server_hostname=name, limit=_BUFFER
                    )
                )
        except TimeoutError:
            raise NoConnection(f"it did not accept a connection within {CONNECT_LIMIT:g} s") from None
        except OSError as error:
            raise NoConnection(str(error)) from None

    def keep(self, connection: Connection) -> None:
        """The connection is idle; its last answer was read to the end."""
        connection.rest()
        self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def parse_head(text: bytes) -> Head:
    """The head of an answer; raises BadAnswer."""
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
        kept = version == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
        return Head(
            status=int(code),
            length=None if chunked else size,
            chunked=chunked,
            kept=kept and (chunked or size is not None),
            retry_after=headers.get(b"retry-after", b"").decode("ascii"),
        )
    except ValueError:
        raise BadAnswer("its answer is no HTTP") from None
