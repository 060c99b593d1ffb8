"""An agent's large answers: one at a time, none for nobody, and none is lost when the stream ends."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes import agent_client
from llmsafespace_gateway.sandboxes.agent_client import AgentClient
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import Answer, ById

ASKED = ById(id="x")
PAD = "x" * (2 * bulk.LARGE)


class Decoder:
    """Counts what is decoded, and stops in there while `go` is not set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = self.running = self.most = 0
        self._lock = threading.Lock()

    def decode(self, body: bytes) -> Answer:
        with self._lock:
            self.begun += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            assert self.go.wait(30)
            return msgspec.json.decode(body, type=Answer)
        finally:
            with self._lock:
                self.running -= 1


class Agent:
    """The other end of the stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def asked(self) -> int:
        """The id of the next request."""
        length, _ = struct.unpack(">IB", await self._reader.readexactly(5))
        return int(json.loads(await self._reader.readexactly(length))["id"])

    def say(self, body: bytes) -> None:
        self.writer.write(struct.pack(">IB", len(body), FrameKind.JSON) + body)

    def answer(self, number: int, message: str) -> None:
        """Refuse: an error is an answer whose decoding needs no method's type."""
        error = {"code": "conflict", "message": message, "details": {"pad": PAD}}
        self.say(json.dumps({"id": number, "error": error}, separators=(",", ":")).encode())


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    made = Decoder()
    monkeypatch.setattr(agent_client, "_answers", made)
    return made


@pytest.fixture
async def both() -> AsyncIterator[tuple[AgentClient, Agent]]:
    ours, theirs = socket.socketpair()
    _, stream = await asyncio.get_running_loop().create_connection(FrameStream, sock=ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    client = AgentClient(stream)
    yield client, Agent(reader, writer)
    client.close()
    writer.close()


def call(client: AgentClient) -> asyncio.Task[Any]:
    return asyncio.create_task(client.call("executions.get", ASKED, 20.0))


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def refused(task: asyncio.Task[Any]) -> tuple[str, str]:
    with pytest.raises(ApiError) as caught:
        await task
    return caught.value.code, caught.value.message


async def test_an_answer_that_has_come_is_given_although_the_stream_ends(
    both: tuple[AgentClient, Agent], decoder: Decoder
) -> None:
    client, agent = both
    decoder.go.clear()
    first, second = call(client), call(client)
    agent.answer(await agent.asked(), "the first")
    await until(lambda: decoder.begun == 1)
    client.close()
    await until(lambda: client._stream.closed)
    decoder.go.set()
    assert await refused(first) == ("conflict", "the first")
    assert (await refused(second))[0] == "service_unavailable"


async def test_one_large_answer_at_a_time(both: tuple[AgentClient, Agent], decoder: Decoder) -> None:
    client, agent = both
    decoder.go.clear()
    calls = {}
    for _ in range(8):
        task = call(client)
        calls[await agent.asked()] = task
    for number in calls:
        agent.answer(number, f"answer {number}")
    await until(lambda: decoder.begun > 0)
    await asyncio.sleep(0.1)
    assert decoder.begun == 1
    decoder.go.set()
    for number, task in calls.items():
        assert await refused(task) == ("conflict", f"answer {number}")
    assert decoder.most == 1


async def test_what_nobody_asked_is_not_even_decoded(
    both: tuple[AgentClient, Agent], decoder: Decoder
) -> None:
    client, agent = both
    task = call(client)
    number = await agent.asked()
    for other in range(1000, 1050):
        agent.answer(other, "nobody asked")
    agent.answer(number, "asked")
    agent.answer(number, "again")
    assert await refused(task) == ("conflict", "asked")
    assert decoder.begun == 1


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":1,"result":' + DEEP,
        b'{"id":1,"error":{"code":"x","message":"","details":{"a":' + DEEP,
        b'{"id":1,"result":"' + PAD.encode(),
        b'{"result":"' + PAD.encode() + b'","id":1}',
        b'{"id":1,"result":"' + PAD.encode() + b'","id":2}',
        b'{"id":1,"result":' + DEEP[:50_000],
        b"{",
    ],
    ids=["deep", "deep error", "cut off", "id comes last", "two ids", "deep and small", "small"],
)
async def test_a_broken_answer_ends_the_stream(both: tuple[AgentClient, Agent], body: bytes) -> None:
    client, agent = both
    task = call(client)
    await agent.asked()
    agent.say(body)
    assert (await refused(task))[0] == "service_unavailable"
    await until(lambda: client.closed)


async def test_a_deep_result_is_a_broken_answer(both: tuple[AgentClient, Agent]) -> None:
    client, agent = both
    task = call(client)
    number = await agent.asked()
    deep = b"[" * 5000 + b"]" * 5000
    agent.say(b'{"id":%d,"result":{"id":%b}}' % (number, deep))
    assert (await refused(task))[0] == "service_unavailable"
