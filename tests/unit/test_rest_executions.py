"""From an agent's frames to events and answers, over a real socket; the agent may be hostile."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.collecting import collect
from llmsafespace_gateway.sandboxes.events import Clear, Display, End, ErrorEvent, Missed, Stdout, Update
from llmsafespace_gateway.sandboxes.executions import events
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.kernel_messages import pack
from llmsafespace_protocol.requests import CommandInfo, CommandOutput, ExecutionInfo, Gap

Agent = Callable[[FrameStream], Any]


@asynccontextmanager
async def agent_stream(folder: Path, agent: Agent) -> AsyncIterator[FrameStream]:
    """A client's stream to a server that plays `agent`."""
    loop = asyncio.get_running_loop()
    playing: set[asyncio.Task[None]] = set()

    class Server(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            task = asyncio.ensure_future(self._play())
            playing.add(task)

        async def _play(self) -> None:
            result = agent(self)
            if result is not None:
                await result
            self.close()

    path = str(folder / "agent.sock")
    server = await loop.create_unix_server(Server, path)
    _, stream = await loop.create_unix_connection(FrameStream, path)
    try:
        yield stream
    finally:
        stream.abort()
        server.close()
        await asyncio.gather(*playing)


def message(seq: int, kind: str, content: Any, channel: str = "iopub", metadata: Any = None) -> bytes:
    parts = [{"msg_id": "m", "msg_type": kind, "session": "s"}, {}, metadata or {}, content]
    return struct.pack(">Q", seq) + pack(channel, [json.dumps(part).encode() for part in parts])


def send_info(stream: FrameStream, **changes: Any) -> None:
    info = ExecutionInfo(
        id="e", context="c", session="s", status="ended", started_at=1.0, completed_at=2.0, end="ok", last=9
    )
    stream.send(FrameKind.JSON, msgspec.json.encode(msgspec.structs.replace(info, **changes)))


async def test_everything_that_an_execution_can_put_out(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        bundle = {"data": {"text/plain": "1"}, "metadata": {}, "transient": {"display_id": "d"}}
        for seq, (kind, content) in enumerate(
            [
                ("status", {"execution_state": "busy"}),
                ("execute_input", {"code": "x"}),
                ("stream", {"name": "stdout", "text": "out"}),
                ("stream", {"name": "stderr", "text": "err"}),
                ("display_data", bundle),
                ("update_display_data", bundle | {"data": {"text/plain": "2"}}),
                ("execute_result", {"data": {"text/html": "<b>"}, "metadata": {}, "execution_count": 3}),
                ("comm_open", {"comm_id": "x"}),
                ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
            ],
            1,
        ):
            stream.send(FrameKind.KERNEL, message(seq, kind, content))
        stream.send(
            FrameKind.KERNEL, message(10, "execute_reply", {"status": "error", "ename": "E"}, "shell")
        )
        send_info(stream, end="error", execution_count=3)

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream))
    assert (answer.stdout, answer.stderr) == ("out", "err")
    assert [bytes(result.data.popitem()[1]) for result in answer.results] == [b'"2"', b'"<b>"']
    assert [result.is_main_result for result in answer.results] == [False, True]
    assert answer.error == ErrorEvent(seq=9, name="E", value="v", traceback=["t"])
    assert (answer.end.end, answer.end.exit_code, answer.end.execution_count) == ("error", 1, 3)
    assert not answer.truncated


async def test_an_end_that_only_the_reply_explains(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        content = {"status": "error", "ename": "ExecutionTimeout", "evalue": "too long", "traceback": []}
        stream.send(FrameKind.KERNEL, message(4, "execute_reply", content, "shell"))
        send_info(stream, end="timeout", message="too long")

    async with agent_stream(tmp_path, agent) as stream:
        found = [event async for event in events(stream)]
    assert isinstance(found[0], ErrorEvent)
    assert found[0].name == "ExecutionTimeout"
    assert isinstance(found[1], End)
    assert (found[1].end, found[1].message) == ("timeout", "too long")


async def test_gaps_are_counted(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        stream.send(FrameKind.JSON, msgspec.json.encode(Gap(gap=7, resume=8)))
        stream.send(FrameKind.KERNEL, message(8, "stream", {"name": "stdout", "text": "x"}))
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        found = [event async for event in events(stream)]
    assert found[0] == Missed(seq=7, missed=7, resume=8)
    assert found[1] == Stdout(seq=8, text="x")


async def test_a_stream_that_breaks_off_is_no_end(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        stream.send(FrameKind.KERNEL, message(1, "stream", {"name": "stdout", "text": "x"}))

    async with agent_stream(tmp_path, agent) as stream:
        with pytest.raises(ConnectionError):
            await collect(events(stream))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (FrameKind.JSON, b"{"),
        (FrameKind.JSON, b"{}"),
        (FrameKind.JSON, b'{"gap": "many"}'),
        (FrameKind.JSON, b"[" * 100_000),
        (FrameKind.DATA, b"x"),
        (99, b"x"),
        (FrameKind.KERNEL, b""),
        (FrameKind.KERNEL, bytes(8) + b"\xff" * 64),
    ],
)
async def test_a_hostile_agent_is_a_refusal_and_no_crash(tmp_path: Path, kind: int, body: bytes) -> None:
    async with agent_stream(tmp_path, lambda stream: stream.send(kind, body)) as stream:
        with pytest.raises(ApiError) as caught:
            await collect(events(stream))
        assert caught.value.code == "service_unavailable"


@pytest.mark.parametrize(
    "body",
    [
        message(1, "stream", {"name": 1}),
        message(1, "display_data", {"data": [1]}),
        message(1, "stream", {"name": "stdout", "text": "?"}).replace(b"?", b"\xff"),
        message(1, "display_data", {"data": {"a": "?"}}).replace(b"?", b"\xff"),
        message(1, "display_data", {"data": {"a": "?"}}).replace(b'"?"', b"[[{"),
        message(1, "error", {"ename": None}),
        message(1, "display_data", {"data": {"a": "?"}, "metadata": {"n": "?"}}).replace(b'"?"', b"NaN"),
        message(1, "execute_reply", {"status": None}, "shell"),
    ],
)
async def test_a_message_that_cannot_be_read_does_not_condemn_the_rest(tmp_path: Path, body: bytes) -> None:
    def agent(stream: FrameStream) -> None:
        stream.send(FrameKind.KERNEL, body)
        stream.send(FrameKind.KERNEL, message(2, "stream", {"name": "stdout", "text": "the rest"}))
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream))
    assert answer.stdout == "the rest"
    assert answer.end.end == "ok"
    assert ("was left out" in answer.stderr) == (b"execute_reply" not in body)


@pytest.mark.parametrize("odd", [{"metadata": None}, {"transient": 5}, {"metadata": [1], "transient": None}])
async def test_odd_metadata_is_left_out_with_a_note(tmp_path: Path, odd: dict[str, Any]) -> None:
    def agent(stream: FrameStream) -> None:
        shown = {"data": {"text/plain": "x"}, "metadata": {"a": 1}, "transient": {"display_id": "d"}}
        stream.send(FrameKind.KERNEL, message(1, "execute_result", {**shown, **odd}))
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream))
    (result,) = answer.results
    assert bytes(result.data["text/plain"]) == b'"x"'
    assert (not result.metadata) == ("metadata" in odd)
    assert result.display_id == (None if "transient" in odd else "d")
    assert "was left out" in answer.stderr


async def test_impossible_times_and_ends(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        send_info(stream, started_at=-1e300, completed_at=1e300, end="<script>")

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream))
    assert answer.end.end == "error"
    assert answer.end.started_at.year == 1970
    assert answer.end.completed_at.year == 9999


async def test_an_answer_is_bounded_and_says_so(tmp_path: Path) -> None:
    async def agent(stream: FrameStream) -> None:
        for seq in range(1, 101):
            stream.send(FrameKind.KERNEL, message(seq, "stream", {"name": "stdout", "text": "x" * 1000}))
            await stream.drain()
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream), limit=10_500)
    assert answer.stdout == "x" * 10_500
    assert answer.truncated


async def test_a_slow_reader_slows_the_agent_down(tmp_path: Path) -> None:
    sent = 0

    async def agent(stream: FrameStream) -> None:
        nonlocal sent
        for seq in range(1, 201):
            stream.send(FrameKind.KERNEL, message(seq, "stream", {"name": "stdout", "text": "x" * 100_000}))
            await stream.drain()
            sent = seq
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        source = events(stream)
        first = await anext(source)
        assert isinstance(first, Stdout)
        for _ in range(100):  # let everything run that can
            await asyncio.sleep(0)
        assert sent < 100
        rest = [event async for event in source]
    assert len(rest) == 200


async def test_cleared_displays(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        shown = {"data": {"text/plain": "x"}, "metadata": {}}
        stream.send(FrameKind.KERNEL, message(1, "display_data", shown))
        stream.send(FrameKind.KERNEL, message(2, "clear_output", {"wait": True}))
        stream.send(FrameKind.KERNEL, message(3, "display_data", shown))
        stream.send(FrameKind.KERNEL, message(4, "stream", {"name": "stdout", "text": "kept"}))
        send_info(stream)

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream))
    assert len(answer.results) == 1
    assert answer.stdout == "kept"


async def test_commands(tmp_path: Path) -> None:
    def agent(stream: FrameStream) -> None:
        for piece in (CommandOutput(1, "stdout", "a"), CommandOutput(2, "stderr", "b")):
            stream.send(FrameKind.JSON, msgspec.json.encode(piece))
        info = CommandInfo(
            id="c", command="x", pid=1, running=False, started_at=1.0, completed_at=2.0, exit_code=-9, head=2
        )
        stream.send(FrameKind.JSON, msgspec.json.encode(info))

    async with agent_stream(tmp_path, agent) as stream:
        answer = await collect(events(stream, command=True))
    assert (answer.stdout, answer.stderr) == ("a", "b")
    assert (answer.end.end, answer.end.exit_code) == ("error", -9)


def test_events_have_their_names_on_the_wire() -> None:
    raw = msgspec.Raw(b'{"a": 1}')
    shown = msgspec.json.decode(msgspec.json.encode(Display(seq=1, data={"application/json": raw})))
    assert shown["type"] == "display"
    assert shown["data"] == {"application/json": {"a": 1}}
    assert msgspec.json.decode(msgspec.json.encode(Update(data={})))["type"] == "update"
    assert msgspec.json.decode(msgspec.json.encode(Clear()))["type"] == "clear"
