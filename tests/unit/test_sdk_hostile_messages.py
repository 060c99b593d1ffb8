"""A sandbox that sends what no kernel sends: its execution says so and ends, and nothing else breaks."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from llmsafespace import Result, events, messages
from llmsafespace.decoding import MAX_DEPTH, BadMessage, TooDeep, decode_json, decode_object
from llmsafespace.errors import SandboxError
from llmsafespace.jupyter.bridge import Bridge
from llmsafespace.kernel_stream import KernelStream
from llmsafespace.messages import Message
from llmsafespace.outputs import AsyncOutput
from llmsafespace.results import Execution
from llmsafespace.subscription import Subscription
from tests.unit.sdk_streams import kernel_stream_to


def nested(depth: int) -> bytes:
    return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


HOSTILE = {
    "nested a little too deep": nested(MAX_DEPTH + 1),
    "nested deeply": nested(5_000),
    "nested very deeply": nested(100_000),
    "nested without end": b'{"x":' + b"[" * 100_000,
    "objects nested deeply": b'{"x":' * 5_000 + b"1" + b"}" * 5_000,
    "NaN nested deeply": b'{"x":' + b"[" * 5_000 + b"NaN" + b"]" * 5_000 + b"}",
    "not UTF-8, nested deeply": b'{"\xff":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "a huge number": b'{"x": NaN, "y": ' + b"9" * 10_000 + b"}",
    "a list": b"[1]",
    "nothing": b"",
}
BUNDLES = {
    "data is a list": {"data": [1, 2], "metadata": "m", "transient": []},
    "data is text": {"data": "text", "metadata": 1, "transient": {"display_id": {"a": []}}},
    "values are no text": {"data": {"text/plain": {"a": 1}, "image/png": 7, "text/html": [[], 1]}},
    "JSON in JSON": {"data": {"application/json": "[" * 100_000}},
}


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_every_decoder_refuses_it(part: bytes) -> None:
    with pytest.raises(BadMessage):
        decode_object(part)


@pytest.mark.parametrize("part", [part for part in HOSTILE.values() if part.startswith(b"{")])
async def test_a_line_of_an_event_stream_is_told_of(part: bytes) -> None:
    try:
        event = events.from_line(part)
    except SandboxError as error:
        assert type(error) is SandboxError, "others are tried again, for a minute"  # noqa: PT017
        assert "not JSON" in str(error)  # noqa: PT017
    else:
        assert isinstance(event, events.Stderr)
        assert "nested deeper" in event.text


def test_the_bound_itself_is_allowed_and_printable() -> None:
    assert str(decode_json(nested(MAX_DEPTH))).startswith("{")
    with pytest.raises(TooDeep):
        decode_json(nested(MAX_DEPTH + 1).decode())


@pytest.mark.parametrize("content", BUNDLES.values(), ids=BUNDLES)
def test_strange_bundles_are_shown_somehow(content: dict[str, object]) -> None:
    result = Result.from_content(content)
    assert isinstance(str(result), str)
    assert isinstance(result._repr_mimebundle_(), dict)
    assert isinstance(result.formats(), list)
    assert all(isinstance(getattr(result, name), str | None) for name in ("text", "html", "png"))
    assert not isinstance(result.json, Exception)


class HostileKernel:
    """Answers each execute_request with the given part, in the given place, between honest messages."""

    def __init__(self) -> None:
        self.port = 0
        self.place = ("iopub", "display_data", 3)
        self.part = b""

    def answers(self, parent: bytes) -> list[bytes]:
        channel, msg_type, index = self.place

        def build(where: str, kind: str, content: dict[str, object]) -> Message:
            header = messages.header(kind, "kernel")
            return messages.unpack(messages.build(where, header, content, parent=parent))

        hostile = build(channel, msg_type, {"status": "ok"})
        parts = [bytes(part) for part in hostile.parts]
        parts[index] = self.part
        sent = [build("iopub", "stream", {"name": "stdout", "text": "before "})]
        sent.append(Message(channel, parts))
        sent.append(build("iopub", "stream", {"name": "stdout", "text": "after"}))
        if channel != "shell":
            sent.append(build("shell", "execute_reply", {"status": "ok", "execution_count": 1}))
        sent.append(build("iopub", "status", {"execution_state": "idle"}))
        return [messages.pack(message.channel, message.parts) for message in sent]

    async def serve(self, connection: ServerConnection) -> None:
        seq = 0
        async for data in connection:
            assert isinstance(data, bytes)
            parent = bytes(messages.unpack(data).parts[0])
            for frame in self.answers(parent):
                seq += 1
                await connection.send(struct.pack(">Q", seq) + frame)


@pytest.fixture
async def kernel() -> AsyncIterator[HostileKernel]:
    made = HostileKernel()
    async with serve(made.serve, "127.0.0.1", 0, subprotocols=[Subprotocol(messages.DURABLE)]) as server:
        made.port = next(iter(server.sockets)).getsockname()[1]
        yield made


@pytest.fixture
async def stream(kernel: HostileKernel) -> AsyncIterator[KernelStream]:
    async with kernel_stream_to(f"http://127.0.0.1:{kernel.port}") as made:
        yield made


async def run(stream: KernelStream) -> Execution:
    subscription = await stream.execute("code")
    return await AsyncOutput(subscription.msg_id, batches(subscription)).finish()


async def batches(subscription: Subscription) -> AsyncIterator[list[events.Event]]:
    while not subscription.ended or subscription.size:
        batch = await subscription.batch()
        yield batch
        if isinstance(batch[-1], events.End):
            return


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    ("place", "told", "end"),
    [
        (("iopub", "display_data", 3), True, "ok"),
        (("iopub", "stream", 3), True, "ok"),
        (("iopub", "status", 3), True, "ok"),
        (("iopub", "display_data", 0), None, "ok"),
        (("iopub", "display_data", 1), False, "ok"),
        (("shell", "execute_reply", 3), False, "error"),
        (("shell", "execute_reply", 2), False, "error"),
    ],
    ids=["display", "stream", "status", "header", "parent", "reply", "metadata of the reply"],
)
async def test_the_execution_ends_and_the_next_one_runs(
    kernel: HostileKernel,
    stream: KernelStream,
    part: bytes,
    place: tuple[str, str, int],
    told: bool | None,
    end: str,
) -> None:
    kernel.place, kernel.part = place, part
    for _ in range(2):
        execution = await run(stream)
        assert execution.stdout == "before after"
        if told is not None:  # of a header only the fields that are used are read
            assert ("could not be read" in execution.stderr) is told
        assert execution.end == end


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("index", [0, 1, 3])
@pytest.mark.parametrize("channel", ["iopub", "shell"])
def test_the_jupyter_bridge_passes_it_on(channel: str, index: int, part: bytes) -> None:
    """Jupyter applications get what a local kernel would have sent them."""
    parts = [b'{"msg_type":"status","msg_id":"m"}', b"{}", b"{}", b"{}"]
    parts[index] = part
    bridge = Bridge({}, lambda told: None)
    bridge.on_message(Message(channel, parts))
    assert bridge._outgoing.qsize() == 1
