"""Whatever code writes to its kernel's sockets, the kernel's channels go on, and every execution ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from llmsafespace_agent.kernels.channels import DELIMITER, PORTS, Channels
from llmsafespace_agent.kernels.factory import KernelStartError
from llmsafespace_agent.server import cleaning, context, messages, tracking
from llmsafespace_agent.server.context import Context, Setting
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.errors import AgentError
from llmsafespace_agent.server.executions import Execution, Executions
from llmsafespace_agent.server.gate import Gate
from llmsafespace_agent.server.journal import Journal
from llmsafespace_agent.server.messages import Parts
from llmsafespace_protocol.kernel_messages import BadKernelMessage, header_of, unpack

DEEP = b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"
HOSTILE = {
    "nested too deeply": DEEP,
    "nested without end": b'{"x":' + b"[" * 100_000,
    "no UTF-8": b'{"status":"\xff","execution_state":"\xff","traceback":["\xff"],"msg_type":"\xff"}',
    "no UTF-8 where nobody looks": b'{"y":"\xff"}',
    "no JSON": b"{",
    "no object": b"[]",
    "a count that no store holds": b'{"status":"ok","execution_count":1' + b"0" * 400 + b"}",
    "half a surrogate": b'{"status":"\\ud800","msg_id":"\\ud800"}',
    "empty": b"",
}
HEADER = b'{"msg_id":"e1","msg_type":"execute_request","session":"s"}'
IOPUB = (
    *("status", "stream", "display_data", "update_display_data", "execute_result", "execute_input"),
    *("error", "clear_output", "comm_open", "comm_msg", "comm_close", "debug_event", "iopub_welcome"),
    *(cleaning.TOO_LARGE, "nothing_known"),
)
SHELL = ("execute_reply", "kernel_info_reply", "complete_reply", "inspect_reply", "shutdown_reply")
EVERY: list[tuple[str, str, str | None]] = [
    *(("iopub", kind, None) for kind in IOPUB),
    *((channel, kind, None) for channel in ("shell", "control") for kind in SHELL),
    *(("shell", "execute_reply", stop) for stop in ("timeout", "interrupted")),
    ("stdin", "input_request", None),
]

hostile = pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)


@hostile
@pytest.mark.parametrize(
    "read",
    [
        messages.execution_state,
        messages.reply_content,
        cleaning.too_large,
        lambda content: messages.annotated([HEADER, HEADER, content, b"{}"], "interrupted"),
        lambda content: messages.as_failure([HEADER, HEADER, content, content], "timeout", "Name", "text"),
        lambda content: cleaning.cleaned([HEADER, content, content, content]),
    ],
    ids=["status", "reply", "too large", "annotated", "failure", "cleaned"],
)
def test_what_reads_a_kernels_words_raises_nothing(read: Callable[[bytes], Any], content: bytes) -> None:
    found = read(content)
    if isinstance(found, list) and len(found) == 4 and found[3] != content:
        json.loads(b"".join((b"[", found[2], b",", found[3], b"]")).decode())


@hostile
def test_a_header_is_read_or_refused(content: bytes) -> None:
    try:
        header_of(content)
    except BadKernelMessage as error:
        assert "not a message header" in str(error)  # noqa: PT017


# -- a context ----------------------------------------------------------------------------------------


class NoKernels:
    """None starts."""

    languages = ("python",)

    async def take(self, *args: Any, **options: Any) -> Any:
        raise KernelStartError("there is no memory")


class Kernel:
    """Takes what it is sent."""

    alive = True
    pid = 2

    def send(self, channel: str, parts: Parts) -> None:
        """Nowhere."""

    def kill(self) -> None:
        """It is gone already."""


class Watcher:
    deadlines = Deadlines(None)

    def activity(self) -> None:
        """Nobody counts it."""

    def ran_out_of_memory(self, pid: int, returncode: int) -> bool:
        return False


def new_context(folder: Path) -> Context:
    setting = Setting("c", "main", None, "/", {})
    journal = Journal(folder, 2**20, 2**20)
    return Context(setting, NoKernels(), journal, Executions(), Gate(), Watcher())  # type: ignore[arg-type]


def execution(number: int = 1, **more: Any) -> Execution:
    header = HEADER.replace(b"e1", b"e%d" % number)
    return Execution(f"e{number}", "c", "s", header, 0, **more)


def request(one: Execution, size: int = 0) -> Parts:
    return [one.header, b"{}", b"{}", json.dumps({"code": "#" * size}).encode()]


def told(journal: Journal) -> list[str]:
    """The types of all messages that the journal has."""
    entries = (journal.read(seq) for seq in range(1, journal.head + 1))
    return [header_of(unpack(entry.body)[1][0]).msg_type for entry in entries if entry and entry.body]


@hostile
@pytest.mark.parametrize(("channel", "kind", "stop"), EVERY, ids=str)
async def test_every_message_with_every_hostile_part(
    channel: str, kind: str, content: bytes, stop: str | None, tmp_path: Path
) -> None:
    one = new_context(tmp_path)
    one._kernel = Kernel()  # type: ignore[assignment]
    run = execution(stdin=["line"], stop=stop, timeout=1.0)
    one.execute(request(run), run)
    header = b'{"msg_id":"m","msg_type":"%s","session":"k"}' % kind.encode()
    for place in range(4):
        parts = [header, HEADER, b"{}", b"{}"]
        parts[place] = content
        one._received(channel, parts)
    one._received(channel, [header, HEADER, content, content, content])
    one.tracker.kernel_gone("kernel_died", "It died.", unsent=True)
    assert run.ended
    assert told(one.journal).count("execute_reply") >= 1
    assert abs(run.execution_count or 0) < 2**63


async def test_an_execution_whose_reply_is_lost_is_told_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = new_context(tmp_path)
    one._kernel = Kernel()  # type: ignore[assignment]
    run = execution()
    one.execute(request(run), run)

    def unreadable(content: bytes) -> Any:
        raise MemoryError

    monkeypatch.setattr(messages, "reply_content", unreadable)
    with pytest.raises(MemoryError):
        one._received("shell", [HEADER.replace(b"request", b"reply"), HEADER, b"{}", b"{}"])
    one.tracker.kernel_gone("kernel_died", "It died.", unsent=True)
    assert told(one.journal) == ["error", "execute_reply", "status"]


async def test_a_dead_context_says_so_however_much_waited_for_its_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "_PENDING_BYTES", 10_000)
    one = new_context(tmp_path)
    first, late = execution(1), execution(2)
    one.execute(request(first, 9_000), first)
    with pytest.raises(AgentError, match="could not be started"):
        await one.start()
    assert first.end == "kernel_died"
    one.execute(request(late, 9_000), late)
    assert late.end == "kernel_died"
    await one.close("aborted", "It was removed.")
    third = execution(3)
    one.execute(request(third, 9_000), third)
    assert third.end == "kernel_died"


# -- an execution that never becomes idle -------------------------------------------------------------


class Voice:
    def __init__(self) -> None:
        self.killed = asyncio.Event()
        self.skipped: list[str] = []

    def publish(self, channel: str, parts: Parts, execution: Execution | None = None) -> int:
        return 1

    def signal_interrupt(self) -> None:
        """The kernel does not listen."""

    def skip(self, execution: Execution) -> None:
        self.skipped.append(execution.id)

    def kill_kernel(self, message: str) -> None:
        self.killed.set()

    def must_end(self, execution: Execution, seconds: float | None) -> None:
        """Nobody watches."""


@pytest.mark.parametrize("replied", ["before its limit", "between two interrupts", "never"])
async def test_one_that_never_becomes_idle_has_its_limit_all_the_same(
    replied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_AGAIN", (0.05, 0.05, 0.05))
    voice = Voice()
    tracker = tracking.Tracker(voice)
    run = tracker.add(execution(timeout=0.1))
    tracker.sent(run)
    tracker.busy(run)
    if replied == "between two interrupts":
        await asyncio.sleep(0.16)
    if replied != "never":
        tracker.replied(run, [HEADER, HEADER, b"{}", b'{"status":"ok"}'])
        tracker.settle(run)
    assert not run.ended
    await asyncio.wait_for(voice.killed.wait(), 5)
    tracker.kernel_gone("kernel_died", "It was killed.", unsent=True)
    assert run.ended


async def test_one_that_has_ended_and_begins_all_the_same_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_INTERRUPT_FIRST", "_INTERRUPT_AGAIN"):
        monkeypatch.setattr(tracking, name, 0.01)
    voice = Voice()
    tracker = tracking.Tracker(voice)
    run = tracker.add(execution())
    tracker.sent(run)
    tracker.interrupted(run)
    assert run.ended
    assert voice.skipped == [run.id]
    assert tracker.late(run.id, "busy")
    await asyncio.wait_for(voice.killed.wait(), 5)  # it does not listen
    assert tracker.late(run.id, "", reply=True)
    assert tracker.late(run.id, "idle")
    assert not tracker.late(run.id, "idle")


# -- the sockets --------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The kernel's ends of the channels."""
    own = zmq.Context()
    sockets: dict[str, Any] = {}
    for channel, port in PORTS.items():
        sockets[channel] = own.socket(zmq.XPUB if channel == "iopub" else zmq.ROUTER)
        sockets[channel].linger = 0
        sockets[channel].sndhwm = 0
        sockets[channel].bind(f"ipc://{tmp_path / 'z'}-{port}")
    yield sockets
    for socket in sockets.values():
        socket.close()
    own.term()


async def test_a_message_that_nobody_can_handle_does_not_silence_its_channel(
    kernel: dict[str, Any], tmp_path: Path
) -> None:
    got: list[bytes] = []
    arrived = asyncio.Event()

    def receive(channel: str, parts: Parts) -> None:
        got.append(parts[3])
        if parts[3] == b"last":
            arrived.set()
        raise RuntimeError("cannot be handled")

    channels = Channels(tmp_path, receive, acknowledging=True)
    try:
        assert kernel["iopub"].poll(10_000)  # the subscription is there
        for content in (b"first", b"x" * 600_000, *[b"more"] * 300, b"last"):
            kernel["iopub"].send_multipart([b"topic", DELIMITER, b"", b"{}", b"{}", b"{}", content])
        await asyncio.wait_for(arrived.wait(), 10)
        assert len(got) == 303
        await asyncio.sleep(0.05)
        said = []
        while kernel["iopub"].poll(0):
            said.append(kernel["iopub"].recv())
        assert said[0] == b"\x01"
        assert said[1][:1] == b"\x02"  # the acknowledgement
    finally:
        channels.close()


async def test_who_writes_for_ever_in_a_dead_kernels_name_is_not_waited_for(
    kernel: dict[str, Any], tmp_path: Path
) -> None:
    count = 0
    frames = [b"topic", DELIMITER, b"", b"{}", b"{}", b"{}", b"more"]

    def receive(channel: str, parts: Parts) -> None:
        nonlocal count
        count += 1
        kernel["iopub"].send_multipart(frames)

    channels = Channels(tmp_path, receive)
    try:
        assert kernel["iopub"].poll(10_000)
        for _ in range(2_000):
            kernel["iopub"].send_multipart(frames)
        await asyncio.wait_for(channels.drained(0.1), 10)
        channels.close()
        before = count
        await asyncio.sleep(0.05)
        assert count == before
    finally:
        channels.close()
