"""The egress proxy over real sockets, with a TLS server on loopback as the machine's own package index."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

from llmsafespace_gateway.backends.base import EgressRule
from llmsafespace_gateway.egress import Decision, EgressProxy, index_rules
from llmsafespace_gateway.egress.connection import Limits
from tests.certificates import self_signed

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The gateway's own kind of loop."""
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_text("".join(self_signed(["localhost"])))
    return path


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def answer_with_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    body = head + await reader.readexactly(length)
    writer.write(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await writer.drain()
    writer.close()


class World:
    """A loopback server, a proxy that may reach it as the index, and one sandbox's socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.decisions: list[Decision] = []
        self.proxy = EgressProxy()
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(
        self,
        served: Served,
        tls: Path | None = None,
        limits: Limits | None = None,
        *,
        read_only: bool = True,
    ) -> None:
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls)
        self._server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        scheme = "https" if tls else "http"
        rules = index_rules([f"{scheme}://localhost:{self.port}/simple"])
        rules = tuple(msgspec.structs.replace(rule, read_only=read_only) for rule in rules)
        self.proxy = EgressProxy(rules, self.decisions.append, limits=limits)
        await self.proxy.open("sb-1", self.folder, [EgressRule("rebound.invalid"), EgressRule("127.0.0.1")])

    async def stop(self) -> None:
        await self.proxy.stop()
        if self._server is not None:
            self._server.close()

    async def send(self, data: bytes) -> Streams:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "proxy.sock"))
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def answer(self, data: bytes) -> bytes:
        reader, writer = await self.send(data)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    async def tunnel(self, host: str | None = None) -> Streams:
        reader, writer = await self.send(
            f"CONNECT {host or f'localhost:{self.port}'} HTTP/1.0\r\n\r\n".encode()
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 200 ")
        return reader, writer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.stop()


def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


async def test_tls_through_a_tunnel(world: World, certificate: Path) -> None:
    await world.start(echo, certificate)
    reader, writer = await world.tunnel()
    await writer.start_tls(client_tls(certificate), server_hostname="localhost")
    sent = os.urandom(2_000_000)
    writing = asyncio.create_task(write_all(writer, sent))
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 60) == sent
    await writing
    writer.close()
    assert world.decisions == [
        Decision(key="sb-1", allowed=True, host="localhost", port=world.port, reason="CONNECT")
    ]


async def write_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_another_server_name_is_refused(world: World, certificate: Path) -> None:
    await world.start(echo, certificate)
    _, writer = await world.tunnel()
    context = client_tls(certificate)
    with pytest.raises((ssl.SSLError, OSError)):
        await asyncio.wait_for(writer.start_tls(context, server_hostname="other.example"), 20)
    writer.close()
    (decision,) = world.decisions
    assert not decision.allowed
    assert "other.example" in decision.reason


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-client\r\n", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n"]
)
async def test_a_tunnel_carries_tls_only(world: World, certificate: Path, data: bytes) -> None:
    await world.start(echo, certificate)
    reader, writer = await world.tunnel()
    writer.write(data)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert [decision.allowed for decision in world.decisions] == [False]


async def test_silence_in_a_tunnel_ends_it(world: World, certificate: Path) -> None:
    await world.start(echo, certificate, Limits(head=0.2))
    reader, writer = await world.tunnel()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_what_no_rule_allows_is_refused_with_advice(world: World) -> None:
    await world.start(answer_with_request)
    for request in (b"CONNECT example.com:443 HTTP/1.0\r\n\r\n", b"GET http://example.com/ HTTP/1.0\r\n\r\n"):
        answer = await world.answer(request)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"networkAccess" in answer
    assert [(d.allowed, d.host, d.port) for d in world.decisions] == [
        (False, "example.com", 443),
        (False, "example.com", 80),
    ]


async def test_a_sandboxs_own_rule_never_reaches_a_private_address(world: World) -> None:
    await world.start(answer_with_request)
    port = str(world.port).encode()
    await world.proxy.open("sb-1", world.folder, [EgressRule("127.0.0.1", (world.port,))])
    for request in (b"CONNECT 127.0.0.1:%b HTTP/1.0\r\n\r\n", b"GET http://127.0.0.1:%b/ HTTP/1.0\r\n\r\n"):
        answer = await world.answer(request % port)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"private" in answer
    assert not any(decision.allowed for decision in world.decisions)


async def test_a_name_is_checked_after_resolution(
    world: World, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    await world.start(echo, certificate)

    def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", ("169.254.169.254", 0)), (2, 1, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    answer = await world.answer(b"CONNECT rebound.invalid:443 HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"no public address" in answer


async def test_plain_http(world: World) -> None:
    await world.start(answer_with_request, read_only=False)
    url = f"http://localhost:{world.port}/simple/?q=1"
    first = f"POST {url} HTTP/1.1\r\nHost: victim\r\nContent-Length: 5\r\n\r\nhello"
    answer = await world.answer(f"{first}GET http://second/ HTTP/1.0\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in head
    assert body.startswith(b"POST /simple/?q=1 HTTP/1.1\r\nHost: localhost:%d\r\n" % world.port)
    assert body.endswith(b"\r\n\r\nhello")
    assert [decision.allowed for decision in world.decisions] == [True]


@pytest.mark.parametrize(
    "method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "MKCOL", "get", "GETS", "TRACE", "PURGE"]
)
async def test_a_package_index_is_read_alone(world: World, method: str) -> None:
    await world.start(answer_with_request)
    answer = await world.answer(f"{method} http://localhost:{world.port}/pkg HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"only GET and HEAD" in answer
    (decision,) = world.decisions
    assert not decision.allowed
    assert method in decision.reason


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_reading_carries_no_body_to_a_package_index(world: World, method: str) -> None:
    await world.start(answer_with_request)
    target = f"{method} http://localhost:{world.port}/simple/ HTTP/1.0\r\n"
    assert (await world.answer(f"{target}\r\n".encode())).startswith(b"HTTP/1.1 200 ")
    with_body = f"{target}Content-Length: 5\r\n\r\nhello".encode()
    assert (await world.answer(with_body)).startswith(b"HTTP/1.1 403 ")


async def test_unreachable_server(world: World) -> None:
    await world.start(answer_with_request)
    assert world._server is not None
    world._server.close()
    await world._server.wait_closed()
    answer = await world.answer(f"CONNECT localhost:{world.port} HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 504 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"400"),
        (b"GET http://a/ HTTP/1.0\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", b"431"),
    ],
)
async def test_bad_heads_are_answered(world: World, data: bytes, status: bytes) -> None:
    await world.start(answer_with_request)
    reader, writer = await world.send(b"")
    writer.write(data)
    assert (await asyncio.wait_for(reader.readline(), 20)).split(b" ")[1] == status
    writer.close()


async def test_half_a_head_ends(world: World) -> None:
    await world.start(answer_with_request, limits=Limits(head=0.2))
    reader, writer = await world.send(b"GET http://localhost/")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_connections_are_bounded(world: World, certificate: Path) -> None:
    await world.start(echo, certificate, Limits(connections=2))
    held = [await world.tunnel() for _ in range(2)]
    assert (await world.answer(b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in held:
        writer.close()


async def test_sandboxes_are_told_apart_and_closing_ends_connections(world: World, certificate: Path) -> None:
    await world.start(echo, certificate)
    other = world.folder / "other"
    other.mkdir()
    await world.proxy.open("sb-2", other)
    reader, writer = await world.tunnel()
    await world.proxy.close("sb-1")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert not (world.folder / "proxy.sock").exists()
    assert (other / "proxy.sock").exists()


async def test_long_folders_and_what_a_crash_left(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    (folder / "proxy.sock").write_text("left over")
    proxy = EgressProxy()
    path = await proxy.open("sb-1", folder)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    await proxy.stop()
    assert not path.exists()
