"""The way out: a loopback port that leads to the egress proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.server.egress_forward import Forwarder
from llmsafespace_protocol.configuration import EgressForward
from llmsafespace_protocol.egress import preamble

from .conftest import Refused, text
from .test_agent_connections import free_port


async def test_bytes_pass_both_ways_and_ends_are_passed_on(launch: Any, tmp_path: Any) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(b"<" + data + b">")
        await writer.drain()
        writer.close()

    path = f"{tmp_path}/p"
    server = await asyncio.start_unix_server(proxy, path)
    port = free_port()
    agent = await launch(egress={"port": port, "unix": path}, parked=0)
    await agent.rpc()
    for size in (1, 5_000_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * size)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 30) == b"<" + b"x" * size + b">"
        writer.close()
    server.close()
    await server.wait_closed()


async def test_no_proxy_is_a_closed_connection(launch: Any, tmp_path: Any) -> None:
    port = free_port()
    agent = await launch(egress={"port": port, "unix": f"{tmp_path}/nothing"}, parked=0)
    await agent.rpc()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()


async def test_a_proxy_behind_tcp_is_told_who_comes_and_only_after_bind(launch: Any) -> None:
    came: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read())
        writer.write(b"answer")
        writer.close()

    async def through() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            writer.write(b"GET http://a/\r\n")
            writer.write_eof()
            return await asyncio.wait_for(reader.read(), 30)
        return b""

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = free_port()
    where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    agent = await launch(
        egress={"port": port, "proxy": where}, env={"HTTPS_PROXY": f"http://127.0.0.1:{port}"}
    )
    rpc = await agent.rpc()
    assert await through() == b""
    assert came == []
    await agent.bind(rpc, egressToken="1.to-ken_.x")
    assert await through() == b"answer"
    assert came == [preamble("1.to-ken_.x") + b"GET http://a/\r\n"]
    got, _ = await agent.execution("e", code="import os; print(*os.environ.values())")
    assert "to-ken_" not in text(got)
    server.close()


async def test_without_a_token_nothing_leaves(launch: Any) -> None:
    came: list[bytes] = []
    server = await asyncio.start_server(lambda reader, writer: came.append(b"?"), "127.0.0.1", 0)
    port = free_port()
    where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    agent = await launch(egress={"port": port, "proxy": where})
    await agent.bind(await agent.rpc())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    server.close()
    assert came == []


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "a\r", "é", "x" * 32769])
async def test_a_token_is_one_word(launch: Any, token: str) -> None:
    agent = await launch(parked=0)
    with pytest.raises(Refused) as caught:
        await agent.bind(await agent.rpc(), egressToken=token)
    assert caught.value.error.code == "invalid_request"


async def test_what_a_client_sends_before_the_proxy_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where asyncio reads although it was paused when the connection was made (Python 3.11.2)."""

    def add_reader(self: Any, fd: int, callback: Any, *arguments: Any) -> None:
        self._loop._add_reader(fd, callback, *arguments)

    monkeypatch.setattr("asyncio.selector_events._SelectorTransport._add_reader", add_reader)
    came: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readline() + await reader.readline())
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = free_port()
    forwarder = Forwarder(EgressForward(port=port, proxy=f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    forwarder.token = "t"
    assert await forwarder.start(OwnProcesses()) is None
    with socket.socket() as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        client.send(b"early\n")
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 30) == b""
    assert came == [preamble("t") + b"early\n"]
    forwarder.close()
    server.close()
