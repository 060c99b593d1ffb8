"""Real kernels whose code writes to their sockets what it likes, before they are dead and after."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind

from .conftest import Got, end_of, reply, text

# A child that has left the kernel's session writes to the agent's iopub connection, which it has inherited,
# as soon as the kernel is dead.
HEIR = r"""
import json, os, signal, socket, struct, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
kernel = os.getpid()
def frame(data, more):
    size = struct.pack(">Q", len(data)) if len(data) > 255 else bytes([len(data)])
    return bytes([more | (2 if len(data) > 255 else 0)]) + size + data
def message(kind, content):
    header = {"msg_id": os.urandom(8).hex(), "msg_type": kind, "session": "heir"}
    header, content = json.dumps(header).encode(), json.dumps(content).encode()
    parts = [b"topic", b"<IDS|MSG>", b"", header, b"{}", b"{}"]
    return b"".join(frame(part, 1) for part in parts) + frame(content, 0)
if os.fork() == 0:
    os.setsid()
    heard = []
    for number in range(3, 200):
        try:
            one = socket.socket(fileno=number)
            one.getpeername()
            if os.fsdecode(one.getsockname()).endswith("z-2"): heard.append(one)
        except OSError: pass
    with open("heir", "w") as file: file.write(f"{os.getpid()} {len(heard)}")
    while os.getppid() == kernel: time.sleep(0.001)
    for one in heard: one.setblocking(True)
    text = message("stream", {"name": "stdout", "text": "from the heir " * 100}) * 50
    try:
        while True:
            for one in heard: one.sendall(text)
    except OSError as error:
        with open("heir-ended", "w") as file: file.write(str(error))
    os._exit(0)
while not os.path.exists("heir"): pass
"""


async def test_a_child_that_writes_in_a_dead_kernels_name_keeps_nobody_waiting(agent: Any) -> None:
    session = await agent.session()
    code = HEIR + "print('on', flush=True)\nwhile True: pass"
    got, info = await asyncio.wait_for(agent.execution(uuid.uuid4().hex, code=code, timeout=1), 30)
    assert info["end"] == "timeout"
    assert reply(got).content["ename"] == "ExecutionTimeout"
    assert (agent.workspace / "heir").read_text().split()[1] == "1", "the child found no connection"
    assert (await agent.calls("contexts.get", id=agent.context)).state == "dead"
    await agent.calls("contexts.restart", id=agent.context)
    start = len(session.got)
    assert text(await session.run("print('new')")) == "new\n"
    again = await agent.calls("contexts.get", id=agent.context)
    await asyncio.sleep(0.2)
    assert (await agent.calls("contexts.get", id=agent.context)).head == again.head
    late = [one for one in session.got[start:] if isinstance(one, Got) and one.content.get("text")]
    restarted = next(n for n, one in enumerate(late) if one.content["text"] == "new\n")
    assert all("heir" not in one.content["text"] for one in late[restarted:])
    assert (agent.workspace / "heir-ended").exists()


async def test_a_restart_is_not_held_up_by_a_child_that_writes_on(agent: Any) -> None:
    session = await agent.session()
    await session.run(HEIR)
    await asyncio.wait_for(agent.calls("contexts.restart", id=agent.context), 30)
    got = await session.run("print('new')")
    assert text(got) == "new\n"
    texts = [one.content.get("text", "") for one in session.got if isinstance(one, Got)]
    assert not any("heir" in one for one in texts)


WRITE = r"""
import json
kernel = get_ipython().kernel
parent = json.dumps(get_ipython().get_parent()["header"], default=str).encode()
def write(channel, kind, content, parent=parent, metadata=b"{}"):
    header = json.dumps({"msg_id": "m", "msg_type": kind, "session": "s"}).encode()
    parts = [b"<IDS|MSG>", b"", header, parent, metadata, content]
    if channel == "iopub":
        kernel.iopub_thread.send_multipart([b"topic", *parts])
    else:
        socket = getattr(kernel.shell_stream, "socket", kernel.shell_stream)
        socket.send_multipart([*kernel._parent_ident["shell"], *parts])
DEEP = b'{"x":' + b"[" * 2000 + b"]" * 2000 + b"}"
BAD = b'{"status":"\xff","execution_state":"\xff","msg_type":"\xff"}'
"""


@pytest.mark.parametrize("content", ["DEEP", "BAD"])
@pytest.mark.parametrize(
    "kind", ["llmsafespace_too_large", "status", "stream", "display_data", "error", "execute_result"]
)
async def test_output_goes_on_after_what_cannot_be_read(agent: Any, kind: str, content: str) -> None:
    session = await agent.session()
    stream, _ = await agent.open("channels", session="raw", context=agent.context)
    one = session.execute(
        WRITE + f"for place in ('content', 'parent', 'metadata'):\n"
        f"    write('iopub', {kind!r}, **{{'content': b'{{}}', place: {content}}})\n"
        "print('x' * 1_000_000)\nprint('after')"
    )
    seen = b""
    while b"after\\n" not in seen:
        _, body = await asyncio.wait_for(stream.next_frame(), 30)
        seen = seen[-100_000:] + body
    while (await agent.calls("executions.get", id=one)).status != "ended":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert (await agent.calls("executions.get", id=one)).end == "ok"


@pytest.mark.parametrize("content", ["DEEP", "BAD"])
async def test_a_reply_that_cannot_be_read_is_an_error_and_the_limit_holds(agent: Any, content: str) -> None:
    code = WRITE + f"write('shell', 'execute_reply', {content})\nwhile True: pass"
    stream, _ = await agent.open("execution", execution=uuid.uuid4().hex, code=code, timeout=1)
    info: dict[str, Any] = {}
    while "status" not in info:
        kind, body = await asyncio.wait_for(stream.next_frame(), 30)
        if kind == FrameKind.JSON:
            info = json.loads(body)
    assert info["end"] in ("timeout", "error")
    session = await agent.session()
    await agent.calls("contexts.restart", id=agent.context)
    assert end_of(await session.run("1")) == "ok"
