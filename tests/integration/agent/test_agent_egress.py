"""The way out: a loopback port that leads to a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

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
