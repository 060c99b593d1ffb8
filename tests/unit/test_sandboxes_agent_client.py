"""An agent whose answers cannot be read fails the call that waits for them, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.agent_client import AgentClient, opened
from llmsafespace_protocol.frames import FrameKind, FrameStream


class Nothing(msgspec.Struct):
    """Parameters of a call that has none."""


NONSENSE = {
    "no JSON": b"\xff",
    "no UTF-8": b'{"error": {"code": "\xff", "message": ""}, "id": 1}',
    "too deep": b'{"x":' + b"[" * 100_000,
    "too deep and long": b'{"x":' + b"[" * (bulk.LARGE + 1),
    "a result of another type": b'{"id": 1, "result": [1]}',
    "a result without UTF-8": b'{"id": 1, "result": {"state": "\xff"}}',
    "a result that is too deep": b'{"id": 1, "result": {"x": ' + b"[" * 500 + b"]" * 500 + b"}}",
}


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[FrameStream, FrameStream]]:
    """Two ends of one connection: the gateway's and the agent's."""
    accepted: asyncio.Queue[FrameStream] = asyncio.Queue()

    class Incoming(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.put_nowait(self)

    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(Incoming, str(folder / "socket"))
    _, ours = await loop.create_unix_connection(FrameStream, str(folder / "socket"))
    agent = await accepted.get()
    try:
        yield ours, agent
    finally:
        server.close()
        for each in (ours, agent):
            each.abort()


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
async def test_an_answer_that_cannot_be_read_fails_its_call_at_once(tmp_path: Path, said: bytes) -> None:
    async with pair(tmp_path) as (ours, agent):
        client = AgentClient(ours)
        agent.receive(lambda kind, body: agent.send(FrameKind.JSON, said))
        with pytest.raises(ApiError) as raised:
            await asyncio.wait_for(client.call("status", Nothing()), 30)
        assert raised.value.code == "service_unavailable"


@pytest.mark.parametrize("said", list(NONSENSE.values())[:4], ids=list(NONSENSE)[:4])
async def test_an_open_whose_answer_cannot_be_read_fails(tmp_path: Path, said: bytes) -> None:
    async with pair(tmp_path) as (ours, agent):
        agent.send(FrameKind.JSON, said)
        with pytest.raises(ApiError) as raised:
            await opened(ours)
        assert raised.value.code == "service_unavailable"
        await asyncio.wait_for(ours.wait_closed(), 30)
