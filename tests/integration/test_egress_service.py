"""The egress proxy as a process of its own: who gets out, where to, and what the log says of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_agent.server import certificate
from llmsafespace_gateway.egress.connection import Limits
from llmsafespace_gateway.egress.service import EgressService
from llmsafespace_kube.claims.egress_token import EgressGrant, GrantedRule, sign
from llmsafespace_protocol.egress import MAX_PREAMBLE, preamble

DEADLINE = 30.0
KEY = b"k" * 32
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def token(*rules: GrantedRule, address: str = "127.0.0.1", life: float = 86400.0, key: bytes = KEY) -> str:
    return sign(key, EgressGrant("sb-1", address, rules, time.time() + life))


class Proxy:
    """A running service; `log` is what it has said so far."""

    def __init__(self, folder: Path, *options: str) -> None:
        (folder / "key").write_bytes(KEY + b"\n")
        self.port, self.http = free_port(), free_port()
        command = [sys.executable, "-m", "llmsafespace_gateway.egress", "--key-file", str(folder / "key")]
        command += ["--port", str(self.port), "--http-port", str(self.http), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        self.said("egress serves")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.log.append(json.loads(line))
                self._changed.notify_all()

    def said(self, message: str) -> dict[str, Any]:
        """The first log line that begins so, waited for."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.log if line["message"].startswith(message)), None)

        with self._changed:
            assert self._changed.wait_for(found, DEADLINE), self.log
            return found() or {}

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)

    async def send(self, data: bytes, source: str = "127.0.0.1") -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def answer(self, data: bytes, source: str = "127.0.0.1") -> bytes:
        reader, writer = await self.send(data, source)
        try:
            return await asyncio.wait_for(reader.read(), DEADLINE)
        finally:
            writer.close()

    async def tunnel(self, port: int, sent: str = "", source: str = "127.0.0.1") -> Streams:
        request = f"CONNECT localhost:{port} HTTP/1.0\r\n\r\n".encode()
        reader, writer = await self.send(preamble(sent or token()) + request, source)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        assert head.startswith(b"HTTP/1.1 200 "), head
        return reader, writer


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a TLS server that sends back what it gets: the machine's own package index."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    context, _ = certificate.finish(certificate.begin(), str(tmp_path))
    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def proxy(tmp_path: Path, index: int) -> Iterator[Proxy]:
    made = Proxy(tmp_path, "--index", f"https://localhost:{index}/simple", "--connections", "3")
    yield made
    made.stop()


def client_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def echoed(streams: Streams, size: int) -> bool:
    reader, writer = streams
    await asyncio.wait_for(writer.start_tls(client_tls(), server_hostname="localhost"), DEADLINE)
    sent = os.urandom(size)
    writer.write(sent)
    return await asyncio.wait_for(reader.readexactly(size), DEADLINE) == sent


async def test_a_sandbox_reaches_the_package_index_and_the_log_tells(proxy: Proxy, index: int) -> None:
    streams = await proxy.tunnel(index)
    assert await echoed(streams, 500_000)
    streams[1].close()
    line = proxy.said("egress allowed")
    assert {name: line[name] for name in ("sandbox", "address", "host", "port", "decision")} == {
        "sandbox": "sb-1",
        "address": "127.0.0.1",
        "host": "localhost",
        "port": index,
        "decision": "allowed",
    }
    status, metrics = proxy.get("/metrics")
    assert status == 200
    assert 'llmsafespace_egress_decisions_total{decision="allowed"} 1.0' in metrics
    assert "sb-1" not in metrics
    assert proxy.get("/healthz")[0] == proxy.get("/readyz")[0] == 200
    assert token() not in json.dumps(proxy.log)


GET = b"GET http://localhost/ HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "word"),
    [
        (preamble(token(key=b"l" * 32)), "not signed"),
        (preamble(token(life=-1)), "expired"),
        (preamble(token(address="127.0.0.2")), "another sandbox"),
        (preamble(token()[:-1]), "not signed"),
        (preamble("x" * (MAX_PREAMBLE - 40)), "not an egress token"),
        (preamble(token(GrantedRule("not a host"))), "not a host name"),
        (b"", "agents"),
        (b"\0\xff\n", "agents"),
        (b"LLMSAFESPACE-EGRESS \xff\n", "agents"),
    ],
)
async def test_without_its_own_valid_token_nobody_gets_anywhere(
    proxy: Proxy, first: bytes, word: str
) -> None:
    answer = await proxy.answer(first + GET)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert word in answer.decode()
    assert proxy.said("egress refused")["address"] == "127.0.0.1"
    assert 'llmsafespace_egress_refused_total{reason="' in proxy.get("/metrics")[1]


async def test_a_stolen_token_is_of_no_use_elsewhere(proxy: Proxy, index: int) -> None:
    stolen = token(GrantedRule("localhost", (index,)))
    answer = await proxy.answer(preamble(stolen) + GET, source="127.0.0.2")
    assert b"another sandbox" in answer


async def test_an_endless_first_line_is_cut_off(proxy: Proxy) -> None:
    answer = await proxy.answer(b"LLMSAFESPACE-EGRESS " + b"x" * 200_000)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"too long" in answer


async def test_what_no_rule_allows_is_refused_and_logged(proxy: Proxy) -> None:
    allowed = token(GrantedRule("example.org", (443,)))
    answer = await proxy.answer(preamble(allowed) + b"CONNECT example.com:443 HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"example.org:443" in answer
    line = proxy.said("egress denied")
    assert (line["sandbox"], line["host"], line["port"]) == ("sb-1", "example.com", 443)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "10.96.0.1", "[::1]", "[::ffff:10.0.0.1]"])
async def test_a_sandboxs_own_rule_never_reaches_a_private_address(proxy: Proxy, host: str) -> None:
    mine = token(GrantedRule(host, (443,)))
    answer = await proxy.answer(preamble(mine) + f"CONNECT {host}:443 HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"private" in answer


async def test_another_server_name_is_refused(proxy: Proxy, index: int) -> None:
    _, writer = await proxy.tunnel(index)
    with pytest.raises((ssl.SSLError, OSError)):
        await asyncio.wait_for(writer.start_tls(client_tls(), server_hostname="other.example"), DEADLINE)
    writer.close()
    assert "other.example" in proxy.said("egress denied")["reason"]


async def test_one_sandbox_cannot_take_all_connections(proxy: Proxy, index: int) -> None:
    held = [await proxy.tunnel(index) for _ in range(3)]
    answer = await proxy.answer(preamble(token()))
    assert answer.startswith(b"HTTP/1.1 503 ")
    other = await proxy.tunnel(index, token(address="127.0.0.2"), source="127.0.0.2")
    assert await echoed(other, 10)
    for _, writer in (*held, other):
        writer.close()


async def test_a_token_that_expires_ends_its_connections(proxy: Proxy, index: int) -> None:
    reader, writer = await proxy.tunnel(index, token(life=1.0))
    assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    writer.close()


async def test_the_end_waits_for_what_is_open(proxy: Proxy, index: int) -> None:
    streams = await proxy.tunnel(index)
    proxy.process.send_signal(signal.SIGTERM)
    while proxy.get("/readyz")[0] != 503:  # noqa: ASYNC110  # another process
        await asyncio.sleep(0.05)
    assert await echoed(streams, 100_000)
    streams[1].close()
    assert await asyncio.to_thread(proxy.process.wait, DEADLINE) == 0


async def test_who_never_says_who_it_is_is_sent_away(index: int) -> None:
    service = EgressService(KEY, (), limits=Limits(head=0.2))
    port = await service.start(0, "127.0.0.1")
    for begin in (b"", b"LLMSAFESPACE-EGRESS "):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        assert (await asyncio.wait_for(reader.read(), DEADLINE)).startswith(b"HTTP/1.1 408 ")
        writer.close()
    await service.drain(0)


@pytest.mark.parametrize("key", [None, b"short"])
def test_no_service_without_a_good_key(tmp_path: Path, key: bytes | None) -> None:
    if key is not None:
        (tmp_path / "key").write_bytes(key)
    command = [sys.executable, "-m", "llmsafespace_gateway.egress", "--key-file", str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert str(tmp_path / "key") in done.stderr
