"""The relay between a real websocket and a real agent stream; the agent's end is driven by the test."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from llmsafespace_gateway import liveness
from llmsafespace_gateway.jupyter.codecs import DURABLE, V1, codec_for, select
from llmsafespace_gateway.sandboxes.relay import CloseCode, Relay
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import pack, unpack
from tests.road import Road

MIB = 1024 * 1024


class Bench:
    """One relay, its agent's end and what it reported."""

    def __init__(self) -> None:
        self.agent = FrameStream()
        self.frames: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.states: list[str] = []
        self.gone: str | None = None
        self.relay: Relay | None = None
        self.forbidden: set[str] = set()
        self.executed: list[str] = []
        self.url = ""
        self.send_buffer: int | None = None  # bytes that the system takes and a client may not have yet

    def message(self, seq: int, channel: str, msg_type: str, content: Any, *buffers: bytes) -> None:
        """Send a kernel message as the agent does."""
        header = {"msg_id": f"m{seq}", "msg_type": msg_type, "session": "kernel"}
        parent = {"msg_id": "request", "session": "s"}
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        self.agent.send(FrameKind.KERNEL, seq.to_bytes(8, "big"), pack(channel, [*parts, *buffers]))

    def gap(self, gap: int, resume: int) -> None:
        self.agent.send(FrameKind.JSON, json.dumps({"gap": gap, "resume": resume}).encode())

    async def received(self, kind: int) -> bytes:
        """The next frame of a kind that the agent got; of others only acks may come before it."""
        while True:
            got, body = await asyncio.wait_for(self.frames.get(), 20)
            if got == kind:
                return body
            assert got == FrameKind.JSON


class Handler(WebSocketHandler):
    def initialize(self, bench: Bench) -> None:
        self.bench = bench

    def open(self, *args: str, **kwargs: str) -> Awaitable[None]:
        return self._relay()

    async def _relay(self) -> None:
        bench = self.bench
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        stream = FrameStream()
        await loop.create_connection(lambda: stream, sock=ours)
        await loop.create_connection(lambda: bench.agent, sock=theirs)
        bench.agent.receive(lambda kind, body: bench.frames.put_nowait((kind, body)))

        async def why_gone() -> str | None:
            return bench.gone

        websocket: Any = self.ws_connection
        if bench.send_buffer is not None:
            websocket.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bench.send_buffer)
        codec = codec_for(websocket.selected_subprotocol)
        bench.relay = Relay(
            stream,
            self,
            websocket.stream,
            codec,
            "s",
            allowed=lambda channel, msg_type: msg_type not in bench.forbidden,
            note=bench.states.append,
            executing=lambda msg_id, allowed, v1: bench.executed.append(msg_id),
            why_gone=why_gone,
        )
        bench.relay.start()

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        assert self.bench.relay is not None
        return self.bench.relay.from_client(message)

    def on_close(self) -> None:
        if self.bench.relay is not None:
            self.bench.relay.client_closed()

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return select(subprotocols)

    def close_socket(self, code: int, reason: str) -> None:
        if self.ws_connection is not None:
            self.ws_connection.close(code, reason)

    def abort_socket(self) -> None:
        websocket: Any = self.ws_connection
        if websocket is not None:
            websocket.stream.close()

    def ping_client(self) -> None:
        self.ping(b"")


async def until(condition: Callable[[], bool]) -> None:
    """Poll until a condition holds."""
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    server = HTTPServer(Application([(r"/", Handler, {"bench": made})], log_function=lambda handler: None))
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    made.url = f"ws://127.0.0.1:{sockets[0].getsockname()[1]}/"
    yield made
    server.stop()
    await server.close_all_connections()
    if made.relay is not None:
        made.agent.abort()
        await made.agent.wait_closed()


async def dial(bench: Bench, *subprotocols: Any, **options: Any) -> ClientConnection:
    connection = await connect(
        bench.url, subprotocols=list(subprotocols) or None, compression=None, max_size=None, **options
    )
    await until(lambda: bench.relay is not None)
    return connection


def request(msg_type: str, channel: str = "shell") -> bytes:
    header = {"msg_id": "request", "msg_type": msg_type, "session": "s"}
    return pack(channel, [json.dumps(header).encode(), b"{}", b"{}", b"{}"])


def read(frame: Any) -> tuple[str, str, Any]:
    """Channel, type and content of a v1 frame."""
    channel, parts = unpack(frame)
    return channel, json.loads(bytes(parts[0]))["msg_type"], json.loads(bytes(parts[3]))


async def test_durable_frames_keep_their_number_and_acks_follow(bench: Bench) -> None:
    async with await dial(bench, DURABLE) as client:
        bench.message(1, "iopub", "stream", {"text": "a"})
        bench.message(2, "iopub", "status", {"execution_state": "busy"})
        first, second = await client.recv(), await client.recv()
        assert isinstance(first, bytes)
        assert int.from_bytes(first[:8], "big") == 1
        assert read(first[8:]) == ("iopub", "stream", {"text": "a"})
        assert int.from_bytes(second[:8], "big") == 2  # type: ignore[arg-type]
        assert json.loads(await bench.received(FrameKind.JSON)) == {"ack": 2}
        assert bench.states == ["busy"]


@pytest.mark.parametrize(
    "content",
    [b'{"x":' + b"[" * 1900 + b"]" * 1900 + b',"execution_state":"idle"}', b'{"execution_state":"\xff"}'],
    ids=["nested too deeply", "no UTF-8"],
)
async def test_a_status_that_cannot_be_read_passes_through(bench: Bench, content: bytes) -> None:
    async with await dial(bench, DURABLE) as client:
        header = b'{"msg_id":"m","msg_type":"status","session":"k"}'
        bench.agent.send(
            FrameKind.KERNEL, (1).to_bytes(8, "big"), pack("iopub", [header, b"{}", b"{}", content])
        )
        bench.message(2, "iopub", "status", {"execution_state": "busy"})
        first, second = await client.recv(), await client.recv()
        assert bytes(unpack(first[8:])[1][3]) == content  # type: ignore[arg-type]
        assert read(second[8:])[2] == {"execution_state": "busy"}
        assert bench.states == ["busy"]


async def test_replayed_old_numbers_do_not_move_the_cursor_back(bench: Bench) -> None:
    async with await dial(bench, DURABLE) as client:
        bench.message(100, "iopub", "stream", {})
        await client.recv()
        assert json.loads(await bench.received(FrameKind.JSON)) == {"ack": 100}
        bench.message(40, "iopub", "stream", {})
        bench.message(101, "iopub", "stream", {})
        await client.recv()
        await client.recv()
        assert json.loads(await bench.received(FrameKind.JSON)) == {"ack": 101}


async def test_what_was_flushed_is_acknowledged_at_close(bench: Bench) -> None:
    client = await dial(bench, V1)
    bench.message(5, "iopub", "stream", {})
    await client.recv()
    await client.close()
    assert json.loads(await bench.received(FrameKind.JSON)) == {"ack": 5}
    await asyncio.wait_for(bench.agent.wait_closed(), 10)


async def test_gaps(bench: Bench) -> None:
    async with await dial(bench, DURABLE) as client:
        bench.gap(3, 9)
        bench.message(9, "iopub", "stream", {})
        assert json.loads(await client.recv()) == {"gap": {"missed": 3, "resume": 9}}
        assert isinstance(await client.recv(), bytes)


async def test_what_the_agent_refuses_is_told(bench: Bench) -> None:
    error = {"code": "conflict", "message": "this id ran other code", "details": {"execution": "e"}}
    async with await dial(bench, DURABLE) as client:
        bench.agent.send(FrameKind.JSON, json.dumps(error).encode())
        assert json.loads(await client.recv()) == {"error": error}


async def test_what_the_agent_refuses_is_a_line_on_stderr(bench: Bench) -> None:
    async with await dial(bench) as client:
        bench.agent.send(FrameKind.JSON, b'{"code": "invalid_request", "message": "env: no"}')
        content = json.loads(await client.recv())["content"]
        assert (content["name"], "env: no" in content["text"]) == ("stderr", True)


async def test_a_gap_is_a_line_on_stderr_of_the_same_request(bench: Bench) -> None:
    async with await dial(bench) as client:
        bench.gap(3, 9)
        bench.gap(2, 11)
        bench.message(11, "shell", "execute_reply", {"status": "ok"})
        notice, reply = json.loads(await client.recv()), json.loads(await client.recv())
        assert notice["msg_type"] == "stream"
        assert notice["content"]["name"] == "stderr"
        assert "5 messages" in notice["content"]["text"]
        assert notice["parent_header"] == reply["parent_header"]
        assert reply["content"] == {"status": "ok"}


async def test_buffers_reach_a_legacy_client_as_a_binary_frame(bench: Bench) -> None:
    async with await dial(bench) as client:
        bench.message(1, "iopub", "comm_msg", {}, b"\0\1\2")
        bench.message(2, "iopub", "comm_msg", {})
        frame = await client.recv()
        assert isinstance(frame, bytes)
        assert frame.endswith(b"\0\1\2")
        assert isinstance(await client.recv(), str)


async def test_requests_reach_the_agent_as_they_came(bench: Bench) -> None:
    async with await dial(bench, V1) as client:
        await client.send(request("execute_request"))
        assert await bench.received(FrameKind.KERNEL) == request("execute_request")


@pytest.mark.parametrize(
    ("msg_type", "channel", "answers"),
    [
        ("execute_request", "shell", ["status", "execute_reply", "status"]),
        ("shutdown_request", "control", ["status", "shutdown_reply", "status"]),
        ("comm_msg", "shell", ["status", "error", "status"]),
        ("input_reply", "stdin", ["status", "error", "status"]),
    ],
)
async def test_a_forbidden_message_is_answered(
    bench: Bench, msg_type: str, channel: str, answers: list[str]
) -> None:
    bench.forbidden.add(msg_type)
    async with await dial(bench, DURABLE) as client:
        await client.send(request(msg_type, channel))
        frames = [await client.recv() for _ in answers]
        assert [int.from_bytes(frame[:8], "big") for frame in frames] == [0, 0, 0]  # type: ignore[arg-type]
        got = [read(frame[8:]) for frame in frames]
        assert [each[1] for each in got] == answers
        assert got[1][2]["ename"] == "PermissionDenied"
        if answers[1].endswith("_reply"):
            assert (got[1][0], got[1][2]["status"]) == (channel, "error")
        await client.send(request("kernel_info_request"))  # the connection goes on
        assert await bench.received(FrameKind.KERNEL) == request("kernel_info_request")


async def test_nobody_sends_on_iopub(bench: Bench) -> None:
    async with await dial(bench, V1) as client:
        await client.send(request("status", "iopub"))
        assert read(await client.recv())[2] == {"execution_state": "busy"}
        assert read(await client.recv())[1] == "error"


@pytest.mark.parametrize(
    ("subprotocols", "garbage", "code"),
    [
        ((V1,), "text", CloseCode.WRONG_FRAME),
        ((DURABLE,), "text", CloseCode.WRONG_FRAME),
        ((V1,), b"garbage", CloseCode.GARBAGE),
        ((V1,), pack("shell", [b"{}", b"{}", b"{}", b"{}"]), CloseCode.GARBAGE),
        ((V1,), pack("shell", [b"[", b"{}", b"{}", b"{}"]), CloseCode.GARBAGE),
        ((), "not json", CloseCode.GARBAGE),
        ((), b"\0\0\0\1", CloseCode.GARBAGE),
    ],
)
async def test_garbage_closes_with_a_reason(
    bench: Bench, subprotocols: tuple[str, ...], garbage: str | bytes, code: int
) -> None:
    async with await dial(bench, *subprotocols) as client:
        await client.send(garbage)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert closed.value.rcvd.reason


async def closing(client: ClientConnection) -> tuple[list[Any], int, str]:
    """What came before the close, its code and reason."""
    async with asyncio.timeout(20):
        frames = [frame async for frame in _until_closed(client)]
    assert client.close_code is not None
    return frames, client.close_code, client.close_reason or ""


async def _until_closed(client: ClientConnection) -> AsyncIterator[Any]:
    while True:
        try:
            yield await client.recv()
        except ConnectionClosed:
            return


async def test_a_lost_agent_stream_asks_the_client_to_connect_again(bench: Bench) -> None:
    async with await dial(bench, V1) as client:
        bench.agent.abort()
        frames, code, _ = await closing(client)
        assert (frames, code) == ([], CloseCode.RESTART)


async def test_a_dead_sandbox_is_told_as_dead(bench: Bench) -> None:
    bench.gone = "the sandbox has ended: expired"
    async with await dial(bench, V1) as client:
        bench.message(1, "iopub", "stream", {})
        bench.agent.close()
        frames, code, reason = await closing(client)
        assert [read(frame)[1:] for frame in frames] == [
            ("stream", {}),
            ("status", {"execution_state": "dead"}),
        ]
        assert (code, reason) == (CloseCode.KERNEL_GONE, bench.gone)


async def test_a_long_reason_is_cut(bench: Bench) -> None:
    async with await dial(bench) as client:
        assert bench.relay is not None
        bench.relay.end(CloseCode.INTERNAL, "ü" * 500)
        _, _, reason = await closing(client)
        assert reason == "ü" * 61


DEEP = b'{"a":' + b"[" * 100_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [(FrameKind.KERNEL, bytes(8) + b"garbage"), (FrameKind.JSON, b"garbage"), (FrameKind.JSON, DEEP)],
    ids=["kernel", "json", "deep"],
)
async def test_the_agent_is_not_trusted(bench: Bench, kind: FrameKind, body: bytes) -> None:
    async with await dial(bench) as client:
        bench.agent.send(kind, body)
        assert (await closing(client))[1] == CloseCode.INTERNAL


async def test_a_status_that_is_nested_deeply_passes_through(bench: Bench) -> None:
    """Code can send one; it concerns its own client, not the relay."""
    async with await dial(bench, V1) as client:
        header = json.dumps({"msg_id": "m", "msg_type": "status", "session": "kernel"}).encode()
        content = b'{"execution_state":"idle","a":' + b"[" * 1500 + b"]" * 1500 + b"}"
        bench.agent.send(
            FrameKind.KERNEL, (1).to_bytes(8, "big"), pack("iopub", [header, b"{}", b"{}", content])
        )
        bench.message(2, "iopub", "status", {"execution_state": "busy"})
        assert content in await client.recv()
        assert read(await client.recv())[1] == "status"
        assert bench.states == ["busy"]


async def test_every_message_of_a_burst_arrives_in_order(bench: Bench) -> None:
    async with await dial(bench, DURABLE) as client:
        for seq in range(1, 5001):
            bench.message(seq, "iopub", "stream", {"text": "x" * (seq % 300)})
            if not bench.agent.writable:
                await bench.agent.drain()
        for seq in range(1, 5001):
            frame = await asyncio.wait_for(client.recv(), 20)
            assert int.from_bytes(frame[:8], "big") == seq  # type: ignore[arg-type]


async def test_a_stalled_reader_holds_the_agent_and_no_memory(bench: Bench) -> None:
    """400 MiB for a client that does not read: they stay where they are, then all arrive."""
    client = await dial(bench, DURABLE, max_queue=1)
    before = psutil.Process().memory_info().rss
    payload = "x" * MIB
    sent = 0

    async def feed() -> None:
        nonlocal sent
        for seq in range(1, 401):
            bench.message(seq, "iopub", "display_data", {"data": payload})
            sent = seq
            await bench.agent.drain()

    feeder = asyncio.create_task(feed())
    assert bench.relay is not None
    relay = bench.relay
    await until(lambda: relay.holds_agent and not bench.agent.writable)
    assert sent < 100
    assert psutil.Process().memory_info().rss - before < 64 * MIB
    for seq in range(1, 401):
        frame = await asyncio.wait_for(client.recv(), 20)
        assert int.from_bytes(frame[:8], "big") == seq  # type: ignore[arg-type]
    await feeder
    await client.close()


async def test_an_agent_that_does_not_read_holds_the_client(bench: Bench) -> None:
    async with await dial(bench, V1) as client:
        assert bench.relay is not None
        bench.agent.hold()
        header = json.dumps({"msg_id": "request", "msg_type": "comm_msg"}).encode()
        big = pack("shell", [header, b"{}", b"{}", b"{}", bytes(MIB)])
        for _ in range(3):
            await client.send(big)
        sender = asyncio.create_task(client.send(big * 1))
        bench.agent.release()
        for _ in range(4):
            assert await bench.received(FrameKind.KERNEL) == big
        await sender


# -- clients far away -----------------------------------------------------------------------------------


@pytest.fixture
async def slow_road(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Road]:
    """Some megabytes take several times as long as a client may be silent."""
    monkeypatch.setattr(liveness, "PING_EVERY", 0.1)
    monkeypatch.setattr(liveness, "SILENCE_LIMIT", 1.0)
    bench.send_buffer = 32 * 1024
    made = Road(urlsplit(bench.url).port or 0, buffer=32 * 1024)
    made.piece, made.pause = 16 * 1024, 0.02
    bench.url = f"ws://127.0.0.1:{made.port}/"
    yield made
    await asyncio.to_thread(made.end)


async def test_a_client_that_sends_a_large_message_slowly_is_there(bench: Bench, slow_road: Road) -> None:
    """Its pongs wait behind the message."""
    async with await dial(bench, DURABLE, ping_interval=None, close_timeout=0.5) as connection:
        header = {"msg_id": "request", "msg_type": "execute_request", "session": "s"}
        parts = [json.dumps(header).encode(), b"{}", b"{}", b"{}", bytes(3 * MIB)]
        message = pack("shell", parts)
        await connection.send(message)
        assert await bench.received(FrameKind.KERNEL) == message
        await asyncio.wait_for(await connection.ping(), 20)


async def test_a_client_that_takes_a_large_message_slowly_is_there(bench: Bench, slow_road: Road) -> None:
    """Pings wait behind the message, and so did the judgement: it has its time afterwards."""
    async with await dial(bench, DURABLE, ping_interval=None, close_timeout=0.5) as connection:
        bench.message(1, "iopub", "display_data", {}, bytes(3 * MIB))
        assert len(await asyncio.wait_for(connection.recv(), 60)) > 3 * MIB
        await asyncio.sleep(0.5)
        await asyncio.wait_for(await connection.ping(), 20)


async def test_a_client_that_is_gone_is_cut_off(bench: Bench, slow_road: Road) -> None:
    async with await dial(bench, DURABLE, ping_interval=None, close_timeout=0.5):
        await asyncio.to_thread(slow_road.silence)
        assert bench.relay is not None
        await asyncio.wait_for(bench.relay.wait_closed(), 20)


def headed(**fields: str) -> bytes:
    header = {"msg_id": "request", "msg_type": "execute_request", "session": "s", **fields}
    return pack("shell", [json.dumps(header).encode(), b"{}", b"{}", b"{}"])


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"msg_id": "x" * 257}, "msg_id"),
        ({"msg_type": "x" * 257}, "msg_type"),
        ({"session": "x" * 4097}, "session"),
        ({"msg_id": "x" * MIB}, "header"),
        ({"username": "x" * 65536}, "header"),
    ],
    ids=["msg_id", "msg_type", "session", "everything", "what routing does not need"],
)
@pytest.mark.parametrize("forbidden", [False, True], ids=["allowed", "forbidden"])
async def test_a_long_header_is_refused_and_not_told_back(
    bench: Bench, fields: dict[str, str], names: str, forbidden: bool
) -> None:
    """Whoever sends it: it is neither passed on, nor kept by what hears of executions."""
    if forbidden:
        bench.forbidden.add("execute_request")
    async with await dial(bench, DURABLE) as client:
        await client.send(headed(**fields))
        answer = await client.recv()
        assert len(answer) < 64 * 1024
        error = json.loads(answer)["error"]
        assert (error["code"], names in error["message"]) == ("invalid_request", True)
        assert bench.executed == []
        bench.forbidden.clear()
        await client.send(headed(msg_id="x" * 256, session="x" * 4096))
        assert json.loads(bytes(unpack(await bench.received(FrameKind.KERNEL))[1][0]))["msg_id"] == "x" * 256
        assert bench.executed == ["x" * 256]


async def test_who_does_not_read_refusals_is_not_read(bench: Bench) -> None:
    """A thousand refused messages with headers of 60 KiB: they stay where they are, then all are answered."""
    bench.forbidden.add("execute_request")
    client = await dial(bench, V1, max_queue=1)
    assert bench.relay is not None
    relay = bench.relay
    message = headed(username="x" * 60_000)
    sent = 0

    async def feed() -> None:
        nonlocal sent
        for _ in range(1000):
            await client.send(message)
            sent += 1

    feeder = asyncio.create_task(feed())
    await until(lambda: relay.waits_for_client)
    before, waiting = -1, 0
    while before != sent:  # until the sender is held
        before = sent
        await asyncio.sleep(0.2)
        waiting = max(waiting, relay._writer.waiting)
    assert sent < 1000
    assert waiting < MIB
    for _ in range(3 * 1000):
        await asyncio.wait_for(client.recv(), 20)
    await feeder
    await client.send(request("kernel_info_request"))
    assert await bench.received(FrameKind.KERNEL) == request("kernel_info_request")
    await client.close()


async def test_a_client_that_goes_away_while_it_is_not_read_is_let_go(bench: Bench) -> None:
    bench.forbidden.add("execute_request")
    client = await dial(bench, V1, max_queue=1)
    assert bench.relay is not None
    relay = bench.relay

    async def feed() -> None:
        while True:
            await client.send(headed(username="x" * 60_000))

    feeder = asyncio.create_task(feed())
    await until(lambda: relay.waits_for_client)
    feeder.cancel()
    client.transport.abort()
    await asyncio.wait_for(relay.wait_closed(), 20)
    await asyncio.wait_for(bench.agent.wait_closed(), 20)


async def test_refusals_of_the_agent_wait_for_the_client_too(bench: Bench) -> None:
    client = await dial(bench, DURABLE, max_queue=1)
    assert bench.relay is not None
    relay = bench.relay
    error = json.dumps({"code": "invalid_request", "message": "x" * 60_000}).encode()
    sent = 0

    async def feed() -> None:
        nonlocal sent
        for _ in range(1000):
            bench.agent.send(FrameKind.JSON, error)
            sent += 1
            await bench.agent.drain()

    feeder = asyncio.create_task(feed())
    await until(lambda: relay.holds_agent and not bench.agent.writable)
    assert sent < 1000
    for _ in range(1000):
        await asyncio.wait_for(client.recv(), 20)
    await feeder
    await client.close()
