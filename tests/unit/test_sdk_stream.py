"""The durable stream against a server that drops connections, over a real socket."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from llmsafespace import events, messages
from llmsafespace.errors import (
    AuthenticationError,
    InvalidRequest,
    PermissionDenied,
    SandboxError,
    SandboxTimeout,
)
from llmsafespace.kernel_stream import KernelStream, watch
from llmsafespace.settings import Endpoint
from llmsafespace.subscription import Subscription
from llmsafespace.transport import Transport

Journal = list[tuple[str, str, dict[str, Any], dict[str, Any]]]


class FakeKernel:
    """A journal behind the durable subprotocol. `drop_after` lists how many frames each connection gets."""

    def __init__(self) -> None:
        self.port = 0
        self.journal: Journal = []
        self.runs: list[str] = []
        self.afters: list[str | None] = []
        self.drop_after: list[int] = []
        self.output = 5
        self.finish = True
        self.status: int | None = None
        self.close_code: int | None = None
        self.gap: str | None = None
        self.refuse = False
        self._more = asyncio.Condition()

    def refuse_upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.status is None:
            return None
        return connection.respond(self.status, json.dumps({"error": {"code": "", "message": "no"}}))

    async def serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        query = parse_qs(urlsplit(connection.request.path).query)
        after = query.get("after", [None])[0]
        self.afters.append(after)
        gone = asyncio.Event()
        reader = asyncio.ensure_future(self._read(connection, gone))
        budget = self.drop_after.pop(0) if self.drop_after else 10**9
        place = len(self.journal) if after is None else int(after)
        try:
            if self.gap is not None:
                await connection.send(self.gap)
            while True:
                async with self._more:
                    while len(self.journal) <= place and not gone.is_set():
                        await self._more.wait()
                if gone.is_set():
                    return
                while place < len(self.journal):
                    if budget == 0:
                        connection.transport.abort()
                        return
                    budget -= 1
                    place += 1
                    await connection.send(self._frame(place))
        finally:
            reader.cancel()

    def _frame(self, seq: int) -> bytes:
        channel, msg_type, content, parent = self.journal[seq - 1]
        header = messages.header(msg_type, "kernel")
        data = messages.build(channel, header, content, parent=json.dumps(parent).encode())
        return struct.pack(">Q", 0 if self.refuse else seq) + data

    async def _read(self, connection: ServerConnection, gone: asyncio.Event) -> None:
        try:
            async for data in connection:
                assert isinstance(data, bytes)
                if self.close_code is not None:
                    await connection.close(self.close_code, "no")
                    continue
                message = messages.unpack(data)
                async with self._more:
                    self._take(json.loads(bytes(message.parts[0])), message.content())
                    self._more.notify_all()
        except ConnectionClosed:
            pass
        gone.set()
        async with self._more:
            self._more.notify_all()

    def _take(self, header: dict[str, Any], content: dict[str, Any]) -> None:
        if header["msg_type"] == "input_reply":
            self.journal.append(
                ("iopub", "stream", {"name": "stdout", "text": content["value"]}, self._asked)
            )
            self._end(self._asked)
            return
        if header["msg_id"] in self.runs:
            return
        self.runs.append(header["msg_id"])
        self.journal.append(("iopub", "status", {"execution_state": "busy"}, header))
        for number in range(self.output):
            self.journal.append(("iopub", "stream", {"name": "stdout", "text": f"{number} "}, header))
        if content["allow_stdin"]:
            self._asked = header
            self.journal.append(("stdin", "input_request", {"prompt": "?", "password": False}, header))
        elif self.finish:
            self._end(header)

    def _end(self, header: dict[str, Any]) -> None:
        status = (
            {"status": "error", "ename": "PermissionDenied", "evalue": "viewers"}
            if self.refuse
            else {"status": "ok"}
        )
        self.journal.append(("shell", "execute_reply", {**status, "execution_count": 1}, header))
        self.journal.append(("iopub", "status", {"execution_state": "idle"}, header))


@pytest.fixture
async def kernel() -> AsyncIterator[FakeKernel]:
    fake = FakeKernel()
    options: dict[str, Any] = {"subprotocols": [messages.DURABLE], "process_request": fake.refuse_upgrade}
    async with serve(fake.serve, "127.0.0.1", 0, **options) as server:
        fake.port = next(iter(server.sockets)).getsockname()[1]
        yield fake


@pytest.fixture
async def stream(kernel: FakeKernel) -> AsyncIterator[KernelStream]:
    transport = Transport(Endpoint(f"http://127.0.0.1:{kernel.port}", "key"))
    made = KernelStream(transport, "kernel-id")
    yield made
    await made.close()
    await transport.close()


async def collect(subscription: Subscription) -> list[events.Event]:
    told: list[events.Event] = []
    while not told or not isinstance(told[-1], events.End):
        told += await asyncio.wait_for(subscription.batch(), 20)
    return told


def text(told: list[events.Event]) -> str:
    return "".join(event.text for event in told if isinstance(event, events.Stdout))


async def test_an_execution(kernel: FakeKernel, stream: KernelStream) -> None:
    told = await collect(await stream.execute("code"))
    assert text(told) == "0 1 2 3 4 "
    assert told[-1] == events.End("ok", 1)
    assert kernel.afters == [None]


@pytest.mark.parametrize("drops", [[1], [3], [0, 2, 4], [6], [7], [8, 1]])
async def test_dropped_connections_lose_and_repeat_nothing(
    kernel: FakeKernel, stream: KernelStream, drops: list[int]
) -> None:
    kernel.drop_after = list(drops)
    subscription = await stream.execute("code")
    told = await collect(subscription)
    assert text(told) == "0 1 2 3 4 "
    assert kernel.runs == [subscription.msg_id]
    again = await stream.execute("more")
    assert text(await collect(again)) == "0 1 2 3 4 "
    assert kernel.runs == [subscription.msg_id, again.msg_id]


async def test_many_at_once(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.drop_after = [9, 20]
    running = [await stream.execute(str(number)) for number in range(8)]
    assert [text(told) for told in await asyncio.gather(*map(collect, running))] == ["0 1 2 3 4 "] * 8
    assert len(kernel.runs) == 8


async def test_input(kernel: FakeKernel, stream: KernelStream) -> None:
    subscription = await stream.execute("input()", allow_stdin=True)
    told: list[events.Event] = []
    while not told or not isinstance(told[-1], events.InputRequest):
        told += await asyncio.wait_for(subscription.batch(), 20)
    await stream.reply(subscription, "Ada")
    assert text(await collect(subscription)) == "Ada"


async def test_a_gap_is_told_and_the_cursor_goes_on(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.gap = '{"gap": {"missed": 3, "resume": 1}}'
    told = await collect(await stream.execute("code"))
    assert [event.missed for event in told if isinstance(event, events.Gap)] == [3]


async def test_a_refused_upgrade_is_the_answer(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.status = 401
    subscription = await stream.execute("code")
    with pytest.raises(AuthenticationError, match="no"):
        await collect(subscription)


async def test_a_message_that_is_refused_is_not_sent_for_ever(
    kernel: FakeKernel, stream: KernelStream
) -> None:
    kernel.close_code = 1009
    with pytest.raises(InvalidRequest, match="too large"):
        await collect(await stream.execute("code"))


async def test_the_gateways_own_refusal(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.refuse = True
    with pytest.raises(PermissionDenied, match="viewers"):
        await collect(await stream.execute("code"))


async def test_nothing_hangs_without_a_limit(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.finish = False
    subscription = await stream.execute("code")

    async def nobody_knows() -> None:
        return None

    await watch(stream, subscription, 0.2, nobody_knows)
    with pytest.raises(SandboxTimeout, match="attach"):
        await collect(subscription)


async def test_a_closed_stream_ends_its_executions(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.finish = False
    subscription = await stream.execute("code")
    await subscription.batch()
    await stream.close()
    with pytest.raises(SandboxError, match="closed"):
        await collect(subscription)
