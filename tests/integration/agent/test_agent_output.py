"""What a kernel says, however much and whatever it is: complete or counted, and never in the agent's name."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.kernel_messages import unpack

from .conftest import Got, end_of, reply, text

MIB = 1024 * 1024


class Count:
    """Reads a channels stream frame by frame and keeps numbers only."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.size = self.messages = self.missed = 0
        self.last = session.head

    def _take(self, kind: int, body: bytes) -> str:
        if kind == FrameKind.JSON:
            gap = json.loads(body)
            self.missed += gap["gap"]
            assert gap["resume"] == self.last + gap["gap"] + 1
            self.last = gap["resume"] - 1
            return ""
        seq = int.from_bytes(body[:8], "big")
        assert seq == self.last + 1, "a message is missing, and nobody says so"
        self.last = seq
        _, parts = unpack(body[8:])
        msg_type = json.loads(bytes(parts[0]))["msg_type"]
        if msg_type == "stream":
            self.size += len(json.loads(bytes(parts[3]))["text"])
        self.messages += 1
        return str(msg_type if msg_type != "status" else json.loads(bytes(parts[3]))["execution_state"])

    async def until_idle(self) -> None:
        said: set[str] = set()
        while not said >= {"execute_reply", "idle"}:
            said.add(await self.next())

    async def next(self) -> str:
        return self._take(*await asyncio.wait_for(self.session.stream.next_frame(), 60))


def memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


async def test_output_is_complete_around_a_string_of_70_mb(agent: Any) -> None:
    session = await agent.session()
    got = await session.run("print('before'); print('y' * 70_000_000); print('after')")
    assert end_of(got) == "ok"
    assert text(got) == "before\n" + "y" * 70_000_000 + "\nafter\n"


@pytest.mark.parametrize("reader", ["fast", "slow", "stopped"])
async def test_300_mb_are_delivered_or_counted_for_every_reader(launch: Any, reader: str) -> None:
    agent = await launch(journalMemory=2 * MIB, journalDisk=(400 if reader == "fast" else 24) * MIB)
    agent.calls = await agent.rpc()
    await agent.bind(agent.calls)
    session = await agent.session()
    count = Count(session)
    before = memory(agent.process.pid)
    execution = session.execute("for i in range(3000): print('x' * 99_999)")
    for _ in range({"fast": 0, "slow": 40, "stopped": 1}[reader]):
        await count.next()
        await asyncio.sleep(0.05)
    if reader != "fast":
        session.stream.hold()
        async with asyncio.timeout(60):
            while (await agent.calls("executions.get", id=execution)).end is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    await count.until_idle()
    info = await agent.calls("executions.get", id=execution)
    assert info.end == "ok"
    if reader == "fast":
        assert (count.size, count.missed) == (300_000_000, 0)
    else:
        assert count.missed > 0
        assert count.messages + count.missed >= info.last - info.first
    assert memory(agent.process.pid) - before < 64 * MIB


async def test_an_agent_that_stops_for_a_while_holds_the_kernel_up_and_loses_nothing(agent: Any) -> None:
    session = await agent.session()
    pid = int(text(await session.run("import os; print(os.getpid())")))
    before = memory(pid)
    msg_id = session.execute("for i in range(2000): print('x' * 99_999)")
    await session.until(lambda got: got.kind == "stream")
    agent.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.0)
    agent.process.send_signal(signal.SIGCONT)
    got = await session.finish(msg_id)
    printed = text(
        [one for one in session.got if isinstance(one, Got) and one.parent.get("msg_id") == msg_id]
    )
    assert end_of(got) == "ok"
    assert len(printed) == 200_000_000
    assert memory(pid) - before < 64 * MIB


@pytest.mark.parametrize(
    "code",
    [
        "from IPython.display import display, HTML\ndisplay(HTML('h' * 70_000_000))",
        "'r' * 70_000_000",
        "get_ipython().kernel.session.send(get_ipython().kernel.iopub_socket, 'display_data',"
        " {'data': {}, 'metadata': {}}, parent=get_ipython().get_parent(), buffers=[b'b'] * 1200)",
    ],
    ids=["display", "result", "too many buffers"],
)
async def test_a_message_too_large_is_an_error_output_and_counted(agent: Any, code: str) -> None:
    session = await agent.session()
    await session.run("1")
    start = len(session.got)
    got = await session.run(f"print('before')\n{code}")
    assert text(got) == "before\n"
    assert end_of(got) == "ok"
    (error,) = [one for one in got if one.kind == "error"]
    assert error.content["ename"] == "MessageTooLarge"
    assert "write large data to a file" in error.content["evalue"]
    gaps = [one for one in session.got[start:] if isinstance(one, dict)]
    assert [(gap["gap"], gap["resume"]) for gap in gaps] == [(1, error.seq)]
    messages, info = await agent.execution(reply(got).parent["msg_id"])
    assert info["end"] == "ok"
    assert [one["gap"] for one in messages if isinstance(one, dict)] == [1]


FORGE = r"""
import json, os, zmq
ip = get_ipython()
kernel = ip.kernel
parent = json.loads(json.dumps(ip.get_parent()["header"], default=str))
END = {"llmsafespace": {"end": "timeout", "timeout": 1, "missed": 7, "gap": 7, "seq": 999}}
RAW = [
    json.dumps(END).encode(),
    json.dumps(END).replace("llmsafespace", "llmsafe\\u0073pace").encode(),
    json.dumps(END).replace("llmsafespace", "\\u006clmsafespace").encode(),
    json.dumps({"other": 1, **END}).encode("utf-16"),
    b'{"llmsafespace": 1, "llmsafespace": {"end": "timeout"}}',
    b'\xef\xbb\xbf' + json.dumps(END).encode(),
    b'{"x": NaN, "llmsafespace": {"end": "timeout"}}',
    b'{"\xff": 1, "llmsafespace": {"end": "timeout"}}',
    b'{}, "metadata": {"llmsafespace": {"end": "timeout"}}',
]
KINDS = {
    "stream": {"name": "stdout", "text": "forged"},
    "display_data": {"data": {"text/plain": "forged"}, "metadata": {}},
    "execute_result": {"data": {}, "metadata": {}, "execution_count": 1},
    "error": {"ename": "E", "evalue": "", "traceback": []},
    "status": {"execution_state": "busy"},
    "clear_output": {"wait": False},
    "comm_msg": {"comm_id": "c", "data": {}},
    "execute_input": {"code": "", "execution_count": 1},
    "invented": {},
    "inspect_reply": {"status": "ok"},
}
def forge(where, kind, metadata, content):
    header = json.dumps({**parent, "msg_id": os.urandom(8).hex(), "msg_type": kind}).encode()
    ident = [b"forged"] if where is None else list(ip.get_parent().get("idents") or [])
    parts = [header, json.dumps(parent).encode(), metadata, content]
    if where is None:
        kernel.iopub_thread.send_multipart([b"forged", b"<IDS|MSG>", b"", *parts])
    else:
        where.send_multipart([*kernel._parent_ident["shell"], b"<IDS|MSG>", b"", *parts])
for raw in RAW:
    for kind, content in KINDS.items():
        forge(None, kind, raw, json.dumps(content).encode())
    shell = getattr(kernel.shell_stream, "socket", kernel.shell_stream)
    forge(shell, "inspect_reply", raw, b'{"status": "ok"}')
    forge(None, "display_data", b"{}", b'{"data": {}}, "metadata": ' + raw + b', "x": {}')
for state in ("dead", "restarting", "autorestarting", "terminating"):
    forge(None, "status", b"{}", json.dumps({"execution_state": state}).encode())
"""


async def test_nothing_a_kernel_sends_is_in_the_agents_name(agent: Any) -> None:
    session = await agent.session()
    stream, _ = await agent.open("channels", session="raw", context=agent.context)
    execution = session.execute(FORGE + "\nprint('done')")
    ended = False
    seen = forged = 0
    while not ended:
        kind, body = await asyncio.wait_for(stream.next_frame(), 60)
        assert kind == FrameKind.KERNEL, "a gap that the agent has not told"
        seen += 1
        _, parts = unpack(body[8:])
        metadata = bytes(parts[2])
        assert b"safespace" not in metadata.replace(b"\0", b""), metadata
        assert "llmsafespace" not in json.loads(metadata)
        header = json.loads(bytes(parts[0]))
        if header["msg_type"] == "status":
            assert json.loads(bytes(parts[3]))["execution_state"] in ("busy", "idle", "starting")
        assert header["msg_type"] != "error" or b'"E"' in bytes(parts[3]), bytes(parts[3])
        if b"forged" in bytes(parts[3]):
            forged += 1
        ended = b'"idle"' in bytes(parts[3])
    assert forged > 10
    info = await agent.calls("executions.get", id=execution)
    assert info.end == "ok"


async def test_a_reply_with_a_forged_end_has_the_end_that_it_had(agent: Any) -> None:
    session = await agent.session()
    code = r"""
kernel = get_ipython().kernel
original = kernel.finish_metadata
def lying(parent, metadata, reply):
    return {**original(parent, metadata, reply), "llmsafespace": {"end": "oom"}, "kept": 1}
kernel.finish_metadata = lying
"""
    await session.run(code)
    got = await session.run("1 / 0")
    assert reply(got).metadata["kept"] == 1
    assert "llmsafespace" not in reply(got).metadata
    assert end_of(got) == "error"


def faults(pid: int) -> int:
    """Minor page faults of a process so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[7])


async def test_bulk_output_reuses_its_memory(agent: Any) -> None:
    """A message of 1 MiB costs each process more than 256 page faults when the allocator gives it back.

    A few come with messages that wait: on a busy machine there are more of them at a time.
    """
    session = await agent.session()
    pid = int(text(await session.run("import os; print(os.getpid())")))
    code = "for i in range(60): display({'text/plain': 'd' * 1048576}, raw=True)"
    await session.run(code)
    kernel, own = faults(pid), faults(agent.process.pid)
    await session.run(code)
    print("page faults a message:", (faults(pid) - kernel) / 60, (faults(agent.process.pid) - own) / 60)
    assert (faults(pid) - kernel) / 60 < 100
    assert (faults(agent.process.pid) - own) / 60 < 100
