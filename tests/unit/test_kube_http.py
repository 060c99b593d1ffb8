"""The HTTP client against a server that says what a test wants, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.api.http import BadAnswer, Endpoint, Head, NoConnection, parse_head

LIMIT = 10.0  # seconds that anything here may take
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


class Scripted:
    """A server whose connections each say the next of `answers`, a piece at a time, and close at None."""

    def __init__(self) -> None:
        self.answers: list[list[bytes | None]] = []
        self.connections = 0
        self.endpoint = Endpoint("http://unset", ssl.create_default_context())

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint(f"http://127.0.0.1:{port}/base/", ssl.create_default_context())
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.readline():
            await reader.readuntil(b"\r\n")
            for piece in self.answers.pop(0):
                if piece is None:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async def ask(self) -> tuple[Head, bytes]:
        """One request and the whole answer, as a call does it."""
        async with asyncio.timeout(LIMIT):
            connection = await self.endpoint.connection()
            try:
                head = await connection.send(REQUEST)
                body = await connection.body(head)
            except BadAnswer:
                connection.close()
                raise
            if head.keep_alive:
                self.endpoint.keep(connection)
            else:
                connection.close()
            return head, body


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    made = Scripted()
    listening = await made.start()
    yield made
    made.endpoint.close()
    listening.close()
    await listening.wait_closed()


def chunks(body: bytes, size: int) -> bytes:
    """The body in chunks of this size."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def cut(text: bytes, size: int) -> list[bytes | None]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_answers_are_whole_in_whatever_pieces_they_come(server: Scripted, size: int) -> None:
    body = bytes(range(256)) * 4
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + body
    chunked = b"HTTP/1.1 201 Created\r\ntransfer-encoding: Chunked\r\n\r\n" + chunks(body, 100)
    trailed = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nX: y\r\n\r\n"
    server.answers = [cut(sized, size), cut(chunked, size), cut(trailed, size), cut(sized, size)]
    assert [await server.ask() for _ in range(4)] == [
        (Head(200, 1024, False, True, ""), body),
        (Head(201, None, True, True, ""), body),
        (Head(200, None, True, True, ""), b"a"),
        (Head(200, 1024, False, True, ""), body),
    ]
    assert server.connections == 1


async def test_a_body_may_end_with_its_connection_which_is_then_not_used_again(server: Scripted) -> None:
    until_close: list[bytes | None] = [b"HTTP/1.1 200 OK\r\n\r\nabc", None]
    closing: list[bytes | None] = [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"]
    server.answers = [until_close, closing, [b"HTTP/1.1 204 No Content\r\n\r\n"]]
    assert [(await server.ask())[1] for _ in range(3)] == [b"abc", b"abc", b""]
    assert server.connections == 3


async def test_a_connection_that_was_closed_meanwhile_is_not_used(server: Scripted) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    server.answers = [[answer, None], [answer]]
    await server.ask()
    idle = await server.endpoint.connection()
    for _ in range(1000):
        if not idle.reusable:
            break
        await asyncio.sleep(0.01)
    server.endpoint.keep(idle)
    await server.ask()
    assert server.connections == 2


async def test_an_interim_answer_is_passed_over(server: Scripted) -> None:
    server.answers = [
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"]
    ]
    assert (await server.ask())[1] == b"a"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nabcde\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 fine\r\n\r\n",
        b"\0" * 3_000_000,
    ],
)
async def test_an_answer_that_breaks_off_or_makes_no_sense_is_an_error(
    server: Scripted, answer: bytes
) -> None:
    server.answers = [[answer, None]]
    with pytest.raises(BadAnswer):
        await server.ask()


async def test_where_nobody_listens_nothing_was_sent(server: Scripted) -> None:
    unused = await asyncio.start_server(server._serve, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    with pytest.raises(NoConnection, match="Connect call failed"):
        await Endpoint(f"http://127.0.0.1:{port}", ssl.create_default_context()).connection()


def test_an_endpoint_knows_its_parts() -> None:
    tls = ssl.create_default_context()
    endpoint = Endpoint("https://[::1]:6443/clusters/a/", tls)
    assert (endpoint.host, endpoint.authority, endpoint.prefix) == ("::1", "[::1]:6443", "/clusters/a")


@given(st.binary(max_size=200))
def test_no_bytes_surprise_the_parser(text: bytes) -> None:
    with contextlib.suppress(BadAnswer):
        parse_head(text + b"\r\n\r\n")
