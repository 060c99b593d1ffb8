"""The durable stream against a server that drops connections, over a real socket."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from llmsafespace import channel, events, kernel_stream, messages
from llmsafespace.errors import (
    AuthenticationError,
    GatewayUnavailable,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    SandboxError,
    SandboxTimeout,
)
from llmsafespace.kernel_stream import KernelStream, watch
from llmsafespace.subscription import Subscription
from tests.road import Road
from tests.unit.sdk_streams import kernel_stream_to

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
        self.word = " "
        self.finish = True
        self.status: int | None = None
        self.close_code: int | None = None
        self.gap: str | None = None
        self.refuse = False
        self._asked: dict[str, Any] = {}
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
            said = f"{number}{self.word}"
            self.journal.append(("iopub", "stream", {"name": "stdout", "text": said}, header))
        if content["allow_stdin"]:
            self._asked = header
            self.journal.append(("stdin", "input_request", {"prompt": "?", "password": False}, header))
        elif self.finish:
            self._end(header)

    async def print_for_ever(self, header: dict[str, Any]) -> None:
        """What a thread does that the code left."""
        while True:
            async with self._more:
                self.journal.append(("iopub", "stream", {"name": "stdout", "text": "tick "}, header))
                self._more.notify_all()
            await asyncio.sleep(0.02)

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
    options |= {"max_size": None, "ping_interval": None}
    async with serve(fake.serve, "127.0.0.1", 0, **options) as server:
        fake.port = next(iter(server.sockets)).getsockname()[1]
        yield fake


@pytest.fixture
async def stream(kernel: FakeKernel) -> AsyncIterator[KernelStream]:
    async with kernel_stream_to(f"http://127.0.0.1:{kernel.port}") as made:
        yield made


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


async def nobody_knows() -> None:
    return None


async def it_ended() -> events.End:
    return events.End("ok", 1)


async def nothing(after: int) -> AsyncGenerator[Sequence[events.Event], None]:
    if after < 0:
        yield []


@pytest.fixture
async def printing(
    kernel: FakeKernel, stream: KernelStream, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Subscription]:
    """An execution whose end never comes, in a kernel that is never quiet."""
    monkeypatch.setattr(kernel_stream, "_LOOK_EVERY", 0.2)
    kernel.finish = False
    subscription = await stream.execute("code")
    thread = asyncio.create_task(kernel.print_for_ever({"msg_id": subscription.msg_id}))
    yield subscription
    thread.cancel()


@pytest.mark.parametrize("limit", [None, 0.2])
async def test_an_end_that_a_gap_swallowed_while_the_kernel_keeps_printing(
    stream: KernelStream, printing: Subscription, limit: float | None
) -> None:
    """The rest is read from the gateway, which knows where the execution's output ends."""
    asked: list[int] = []

    async def rest(after: int) -> AsyncGenerator[Sequence[events.Event], None]:
        asked.append(after)
        yield [events.Stdout("rest", seq=after + 1)]
        yield [events.End("ok", 1, seq=after + 2)]

    printing.put_gap(3, 1)
    listening = asyncio.create_task(collect(printing))
    await asyncio.wait_for(watch(stream, printing, limit, it_ended, rest), 20)
    told = await listening
    assert text(told).startswith("0 1 2 3 4 tick ")
    assert text(told).endswith("tick rest")
    assert told[-1] == events.End("ok", 1, seq=asked[0] + 2)
    assert max(event.seq for event in told[:-2]) == asked[0]


@pytest.mark.parametrize(
    ("failure", "outcome"), [(NotFound("gone"), "ok"), (GatewayUnavailable("away"), GatewayUnavailable)]
)
async def test_a_rest_that_cannot_be_read(
    stream: KernelStream, printing: Subscription, failure: SandboxError, outcome: Any
) -> None:
    """What is no more ends with what is known; what is only out of reach is not taken for whole."""

    async def rest(after: int) -> AsyncGenerator[Sequence[events.Event], None]:
        if after >= 0:
            raise failure
        yield []

    printing.put_gap(3, 1)
    await asyncio.wait_for(watch(stream, printing, None, it_ended, rest), 20)
    if outcome == "ok":
        assert (await collect(printing))[-1] == events.End("ok", 1)
    else:
        with pytest.raises(outcome):
            await collect(printing)


async def test_a_slow_reader_is_waited_for(stream: KernelStream, printing: Subscription) -> None:
    """What is read from the gateway waits in its journal meanwhile."""
    sent: list[int] = []
    begun = asyncio.Event()

    async def rest(after: int) -> AsyncGenerator[Sequence[events.Event], None]:
        for number in range(100):
            sent.append(number)
            begun.set()
            yield [events.Stdout("x", seq=after + number + 1)]
        yield [events.End("ok", 1)]

    printing.put_gap(3, 1)
    watching = asyncio.create_task(watch(stream, printing, None, it_ended, rest))
    await asyncio.wait_for(begun.wait(), 20)
    await asyncio.sleep(0.1)
    assert sent == [0]
    assert text(await collect(printing)).endswith("x" * 100)
    await asyncio.wait_for(watching, 20)


async def test_an_overdue_execution_of_a_kernel_that_keeps_printing(
    stream: KernelStream, printing: Subscription
) -> None:
    await asyncio.wait_for(watch(stream, printing, 0.2, nobody_knows, nothing), 20)
    with pytest.raises(SandboxTimeout, match="attach"):
        await collect(printing)


async def test_an_overdue_execution_whose_reader_is_slow(
    kernel: FakeKernel, stream: KernelStream, printing: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks for its end where nobody reads."""
    monkeypatch.setattr(kernel_stream, "_PAUSE_AT", 1)
    watching = asyncio.create_task(watch(stream, printing, 0.1, nobody_knows, nothing))
    done, _ = await asyncio.wait({watching}, timeout=2)
    assert not done
    watching.cancel()


async def test_nothing_hangs_without_a_limit(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.finish = False
    subscription = await stream.execute("code")

    await watch(stream, subscription, 0.2, nobody_knows, nothing)
    with pytest.raises(SandboxTimeout, match="attach"):
        await collect(subscription)


async def test_a_closed_stream_ends_its_executions(kernel: FakeKernel, stream: KernelStream) -> None:
    kernel.finish = False
    subscription = await stream.execute("code")
    await subscription.batch()
    await stream.close()
    with pytest.raises(SandboxError, match="closed"):
        await collect(subscription)


# -- large messages -------------------------------------------------------------------------------------


@pytest.fixture
async def slow_road(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Road]:
    """Some megabytes take several times as long as a silence may last."""
    monkeypatch.setattr(channel, "PING_AFTER", 0.1)
    monkeypatch.setattr(channel, "PONG_WITHIN", 1.0)
    made = Road(kernel.port, buffer=32 * 1024)
    made.piece, made.pause = 16 * 1024, 0.02
    yield made
    await asyncio.to_thread(made.end)


@pytest.fixture
async def far_stream(slow_road: Road) -> AsyncIterator[KernelStream]:
    async with kernel_stream_to(slow_road.url) as made:
        yield made


async def test_a_large_message_on_a_slow_road_arrives(kernel: FakeKernel, far_stream: KernelStream) -> None:
    kernel.word = "x" * 3_000_000
    kernel.output = 1
    told = await collect(await far_stream.execute("code"))
    assert text(told) == f"0{kernel.word}"
    assert len(kernel.afters) == 1


async def test_a_large_request_on_a_slow_road_arrives(kernel: FakeKernel, far_stream: KernelStream) -> None:
    await collect(await far_stream.execute("first"))
    subscription = await far_stream.execute("x" * 3_000_000)
    assert text(await collect(subscription)) == "0 1 2 3 4 "
    assert len(kernel.afters) == 1


@pytest.mark.parametrize("size", [0, 3_000_000])
async def test_a_road_on_which_nothing_moves_is_left(
    kernel: FakeKernel, far_stream: KernelStream, slow_road: Road, size: int
) -> None:
    """Whatever waits to be sent."""
    await collect(await far_stream.execute("first"))
    await asyncio.to_thread(slow_road.silence)
    slow_road.pause = 0
    assert text(await collect(await far_stream.execute("x" * size))) == "0 1 2 3 4 "
    assert len(kernel.afters) == 2


async def test_a_message_that_no_gateway_takes_is_not_sent(
    kernel: FakeKernel, stream: KernelStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else runs on its channel goes on."""
    monkeypatch.setattr(channel, "MAX_MESSAGE", 100_000)
    subscription = await stream.execute("input()", allow_stdin=True)
    told: list[events.Event] = []
    while not told or not isinstance(told[-1], events.InputRequest):
        told += await asyncio.wait_for(subscription.batch(), 20)
    with pytest.raises(InvalidRequest, match=r"100\d\d\d bytes, and at most 100000 are possible"):
        await stream.execute("x" * 100_000)
    with pytest.raises(InvalidRequest, match="too large"):
        await stream.reply(subscription, "x" * 100_000)
    await stream.reply(subscription, "Ada")
    assert text(await collect(subscription)) == "Ada"
    assert len(kernel.runs) == len(kernel.afters) == 1
