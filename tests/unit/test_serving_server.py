"""The bounded HTTP server over real sockets: crowds, proxies, drains."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler, websocket_connect

from llmsafespace_gateway.serving import Server, TrustedProxies, listen_tcp
from llmsafespace_gateway.serving import server as serving_server
from llmsafespace_gateway.serving.connections import Connection
from llmsafespace_gateway.serving.limits import ServingLimits

HALF_HEAD = b"GET /who HTTP/1.1\r\nHost: gateway\r\nX-Slow: "


class Who(RequestHandler):
    def get(self) -> None:
        self.finish({"address": self.request.remote_ip, "scheme": self.request.protocol})


class Slow(RequestHandler):
    """Answers when the test says so."""

    async def get(self) -> None:
        started, answer = self.settings["started"], self.settings["answer"]
        started.set()
        await answer.wait()
        self.finish("done")


@stream_request_body
class Upload(RequestHandler):
    def initialize(self) -> None:
        self.size = 0

    async def data_received(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.settings["started"].set()

    def put(self) -> None:
        self.finish({"size": self.size})


class Endless(RequestHandler):
    """An answer larger than any buffer."""

    async def get(self) -> None:
        self.settings["started"].set()
        with contextlib.suppress(Exception):
            while True:
                self.write(bytes(256 * 1024))
                await self.flush()


class Talk(WebSocketHandler):
    def open(self, *args: str, **kwargs: str) -> None:
        self.settings["sockets"].append(self)


class Served:
    """A server and clients of it."""

    def __init__(self, server: Server, port: int, settings: dict[str, Any]) -> None:
        self.server = server
        self.port = port
        self.settings = settings
        self.open: list[socket.socket] = []

    async def get(self, path: str = "/who", **headers: str) -> HTTPResponse:
        url = f"http://127.0.0.1:{self.port}{path}"
        return await AsyncHTTPClient(force_instance=True).fetch(url, headers=headers, raise_error=False)

    async def raw(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return reader, writer

    async def until_busy(self) -> None:
        """Wait until each connection has a request."""
        while self.server._heads:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def until_slow(self, count: int) -> None:
        """Wait until so many connections are seen to hold the server up, and nothing more moves on them."""
        patience = serving_server._PATIENCE

        def slow(record: Connection) -> bool:
            return record.sent == record.stream.sent and record.is_slow(time.monotonic(), patience)

        while sum(map(slow, self.server._open)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def until_served(self, **headers: str) -> None:
        """Wait until a request is answered."""
        while (await self.get(**headers)).code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def crowd(self, count: int, data: bytes) -> None:
        """Connections that say `data` and then nothing."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            self.open.append(client)
            await loop.sock_connect(client, ("127.0.0.1", self.port))
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(client, data)


Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`serve(proxies, **limits)`: a served application."""
    made: list[Served] = []

    async def start(proxies: tuple[str, ...] = (), **limits: Any) -> Served:
        settings: dict[str, Any] = {"started": asyncio.Event(), "answer": asyncio.Event(), "sockets": []}
        routes: list[Any] = [("/who", Who), ("/slow", Slow), ("/upload", Upload), ("/talk", Talk)]
        application = Application([*routes, ("/endless", Endless)], **settings)
        wanted = {"connections": 50, "per_address": 20, "descriptor": 10**6} | limits
        server = Server(application, ServingLimits(**wanted), TrustedProxies(proxies))
        sockets = listen_tcp("127.0.0.1", 0)
        server.add_sockets(sockets)
        made.append(Served(server, sockets[0].getsockname()[1], settings))
        return made[-1]

    yield start
    for served in made:
        for client in served.open:
            client.close()
        await served.server.close()
        assert served.server.connections == 0


# -- crowds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", HALF_HEAD, b"GET /who HTTP/1.1\r\nHost: gateway\r\n\r\n"],
    ids=["nothing", "half a head", "idle after an answer"],
)
async def test_a_crowd_that_waits_keeps_nobody_out(serve: Serve, data: bytes) -> None:
    served = await serve(connections=30)
    await served.crowd(200, data)
    for _ in range(5):
        assert (await served.get()).code == 200
    assert served.server.connections <= 30


@pytest.mark.parametrize(
    "data",
    [
        b"PUT /upload HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000000\r\n\r\nx",
        b"GET /endless HTTP/1.1\r\nHost: gateway\r\n\r\n",
    ],
    ids=["a body that does not come", "an answer that is not read"],
)
async def test_a_crowd_of_slow_ones_gives_way(
    serve: Serve, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmsafespace_gateway.serving.server._PATIENCE", 0.2)
    served = await serve(connections=30)
    await served.crowd(29, data)
    await served.until_slow(29)
    await served.crowd(10, data)
    assert (await served.get()).code == 200
    assert served.server.connections <= 30


async def test_there_is_an_answer_when_all_are_busy(serve: Serve) -> None:
    served = await serve(connections=5)
    await served.crowd(5, b"GET /slow HTTP/1.1\r\nHost: gateway\r\n\r\n")
    await served.until_busy()
    answer = await served.get()
    assert answer.code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert json.loads(answer.body)["error"]["code"] == "service_unavailable"
    served.settings["answer"].set()
    await served.until_served()


async def test_half_a_head_ends(serve: Serve) -> None:
    served = await serve(head=0.1)
    reader, writer = await served.raw(HALF_HEAD)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_reader_that_does_not_read_ends(serve: Serve) -> None:
    served = await serve(stalled=0.1)
    await served.crowd(3, b"GET /endless HTTP/1.1\r\nHost: gateway\r\n\r\n")
    await served.settings["started"].wait()
    await asyncio.wait_for(served.server.all_ended(), 10)


async def test_a_websocket_is_a_connection_until_it_ends(serve: Serve) -> None:
    """Not counted by its handshake alone, and not ended for its silence."""
    served = await serve(connections=3, head=0.1, idle=0.1)
    client = await websocket_connect(f"ws://127.0.0.1:{served.port}/talk")
    await asyncio.sleep(2.2)
    assert served.server.connections == 1
    await client.write_message("hello")
    client.close()
    await asyncio.wait_for(served.server.all_ended(), 5)


LITTLE = """
import asyncio, json, logging, resource, sys
from tornado.web import Application, RequestHandler
from llmsafespace_gateway.serving import Server, TrustedProxies, listen_tcp
from llmsafespace_gateway.serving import server as serving_server
from llmsafespace_gateway.serving.connections import Connection
from llmsafespace_gateway.serving.limits import ServingLimits

class Who(RequestHandler):
    def get(self):
        self.finish("here")

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    limits = ServingLimits(connections=10_000, per_address=10_000, descriptor=10_000, head=60)
    server = Server(Application([("/who", Who)]), limits, TrustedProxies())
    sockets = listen_tcp("127.0.0.1", 0)
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
asyncio.run(main())
"""


async def test_a_process_without_descriptors_serves_on_and_says_little() -> None:
    """The bounds are no help here: the process has 64 descriptors, and 300 clients come with half a head."""
    process = subprocess.Popen(
        [sys.executable, "-c", LITTLE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    served = Served(None, int(process.stdout.readline()), {})  # type: ignore[arg-type]
    try:
        await served.crowd(300, HALF_HEAD)
        answers = [await served.get() for _ in range(10)]
        assert [answer.code for answer in answers].count(200) >= 8
    finally:
        for client in served.open:
            client.close()
        process.kill()
        told = process.communicate()[1]
    assert "EMFILE" in told
    assert "Traceback" not in told
    assert len(told.splitlines()) < 30, told


# -- proxies -----------------------------------------------------------------------------------------------


async def test_a_stranger_s_word_about_its_address_is_nothing(serve: Serve) -> None:
    served = await serve()
    forged = {"X-Forwarded-For": "203.0.113.5", "X-Real-Ip": "203.0.113.5", "X-Forwarded-Proto": "https"}
    answer = json.loads((await served.get(**forged, **{"X-Scheme": "https"})).body)
    assert answer == {"address": "127.0.0.1", "scheme": "http"}


async def test_a_proxy_says_who_asks(serve: Serve) -> None:
    """For one request: the next one on the same connection is another client's."""
    served = await serve(("127.0.0.0/8",))
    said = b"X-Forwarded-For: 6.6.6.6, 203.0.113.5\r\nX-Forwarded-Proto: https\r\n"
    reader, writer = await served.raw(b"GET /who HTTP/1.1\r\nHost: g\r\n" + said + b"\r\n")
    assert json.loads(await _body(reader)) == {"address": "203.0.113.5", "scheme": "https"}
    writer.write(b"GET /who HTTP/1.1\r\nHost: g\r\n\r\n")
    assert json.loads(await _body(reader)) == {"address": "127.0.0.1", "scheme": "http"}
    writer.close()


async def test_behind_a_proxy_each_client_counts_for_itself(serve: Serve) -> None:
    served = await serve(("127.0.0.1",), per_address=3)
    request = b"GET /slow HTTP/1.1\r\nHost: g\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n"
    await served.crowd(3, request)
    await served.until_busy()
    forwarded = "X-Forwarded-For"
    assert (await served.get(**{forwarded: "203.0.113.5"})).code == 503
    assert (await served.get(**{forwarded: "203.0.113.6"})).code == 200
    served.settings["answer"].set()
    await served.until_served(**{forwarded: "203.0.113.5"})


async def _body(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


# -- drain -------------------------------------------------------------------------------------------------


async def test_drain_lets_what_runs_end(serve: Serve) -> None:
    served = await serve()
    idle_reader, idle = await served.raw(b"GET /who HTTP/1.1\r\nHost: g\r\n\r\n")
    await _body(idle_reader)
    reader, writer = await served.raw(b"GET /slow HTTP/1.1\r\nHost: g\r\n\r\n")
    await served.settings["started"].wait()
    served.server.begin_drain()
    assert await asyncio.wait_for(idle_reader.read(), 2) == b""  # at once
    with pytest.raises(OSError):  # noqa: PT011
        await asyncio.open_connection("127.0.0.1", served.port)
    assert not reader.at_eof()
    served.settings["answer"].set()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.endswith(b"done")
    assert b"connection: close" in answer.lower()
    await asyncio.wait_for(served.server.all_ended(), 5)
    writer.close()
    idle.close()


async def test_drain_lets_an_upload_end(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.raw(b"PUT /upload HTTP/1.1\r\nHost: g\r\nContent-Length: 200000\r\n\r\n")
    writer.write(bytes(100_000))
    await served.settings["started"].wait()
    served.server.begin_drain()
    await asyncio.sleep(0.05)
    writer.write(bytes(100_000))
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b'{"size": 200000}' in answer
    await asyncio.wait_for(served.server.all_ended(), 5)
    writer.close()


async def test_a_request_that_had_arrived_is_answered(serve: Serve) -> None:
    """It is in the socket when the drain begins, on a connection that looks idle."""
    served = await serve()
    reader, writer = await served.raw(b"GET /who HTTP/1.1\r\nHost: g\r\n\r\n")
    await _body(reader)
    descriptor = writer.get_extra_info("socket").fileno()
    os.write(descriptor, b"GET /who HTTP/1.1\r\nHost: g\r\n\r\n")  # and no turn of the loop in between
    served.server.begin_drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b"200 OK" in answer
    assert b"connection: close" in answer.lower()
    writer.close()


async def test_a_failure_in_one_connection_is_one_line(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve()
    monkeypatch.setattr(served.server, "handle_stream", lambda *given: 1 / 0)
    with caplog.at_level(logging.INFO):
        await served.crowd(40, b"")
        await asyncio.sleep(0.1)
    assert len(caplog.records) <= 3
