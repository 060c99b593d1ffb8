"""Connections of any age break, go silent or find the gateway busy: nothing is lost, nothing runs twice."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmsafespace import AsyncSandbox, GatewayUnavailable, Sandbox, channel, connections, patience, transport
from tests.conftest import Gateway
from tests.road import Road

OLD = 10 * patience.RETRY_FOR
Age = Callable[[], None]
Break = Callable[[Road, Age], None]
LINES = "".join(f"{number}\n" for number in range(40))
# The first run makes the file: a second run would be seen.
CODE = """
import os, time
open("runs", "a").write("x")
print(0, flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
for i in range(1, 40):
    print(i, flush=True)
"""
SILENT_COMMAND = "printf x >> runs; while [ ! -e go ]; do sleep 0.05; done; echo done"


@pytest.fixture
def road(gateway: Gateway) -> Iterator[Road]:
    made = Road(gateway.port)
    yield made
    made.end()


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Age:
    """Make everything that exists older than any limit: the clock of the SDK jumps."""
    jumped = [0.0]
    monkeypatch.setattr(patience, "now", lambda: time.monotonic() + jumped[0])

    def jump() -> None:
        jumped[0] += OLD

    return jump


@pytest.fixture(autouse=True)
def short_silences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent connection is found out in seconds."""
    monkeypatch.setattr(channel, "PING_AFTER", 0.3)
    monkeypatch.setattr(channel, "PONG_WITHIN", 0.7)
    monkeypatch.setattr(connections, "SILENCE", 1.5)
    monkeypatch.setattr(transport, "ANSWER_SOON", 1.0)
    monkeypatch.setattr(transport, "ANSWER_LATER", 1.5)


@pytest.fixture
def sandbox(road: Road, gateway: Gateway) -> Iterator[Sandbox]:
    with Sandbox(runtime="python", api_url=road.url, api_key=gateway.admin_key) as made:
        yield made


def cut(road: Road, age: Age) -> None:
    age()
    road.cut()


def cut_twice(road: Road, age: Age) -> None:
    cut(road, age)
    time.sleep(0.3)
    cut(road, age)


def cut_while_reconnecting(road: Road, age: Age) -> None:
    road.cut_after = [20, 150]  # in the answer's head, and just behind it
    cut(road, age)


def busy(road: Road, age: Age) -> None:
    road.unavailable = 4
    cut(road, age)


def away(road: Road, age: Age) -> None:
    age()  # before the road is closed: a call that is counting its patience already would be at its end
    road.close()
    road.cut()
    time.sleep(1.0)
    road.open()


def silent(road: Road, age: Age) -> None:
    age()
    road.silence()


BREAKS = [cut, cut_twice, cut_while_reconnecting, busy, away, silent]
every_break = pytest.mark.parametrize("break_", BREAKS, ids=lambda each: each.__name__)


def go(gateway: Gateway, sandbox: Sandbox) -> None:
    """Let what runs in the sandbox go on; over a road of its own."""
    with_key = {"api_url": gateway.url, "api_key": gateway.admin_key}
    direct = Sandbox.connect(sandbox.id, **with_key)
    direct.files.write("go", "")
    direct.close()


def runs(sandbox: Sandbox) -> bytes:
    return sandbox.files.read("runs")


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@every_break
def test_streamed_code(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    stream = sandbox.stream_code(CODE)
    events = stream.events()
    text = [next(events)]
    break_(road, age)
    go(gateway, sandbox)
    text += list(events)
    numbers = [event.seq for event in text]
    assert numbers == sorted(set(numbers))
    assert (stream.execution.stdout, stream.execution.end) == (LINES, "ok")
    assert runs(sandbox) == b"x"


@every_break
def test_awaited_code(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    begun = threading.Event()

    def disturb() -> None:
        begun.wait(30)
        break_(road, age)
        go(gateway, sandbox)

    thread = in_background(disturb)
    execution = sandbox.run_code(CODE, timeout=50, on_stdout=lambda text: begun.set())
    thread.join(30)
    assert (execution.stdout, execution.end) == (LINES, "ok")
    assert runs(sandbox) == b"x"


@every_break
def test_a_silent_command(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    def disturb() -> None:
        direct = Sandbox.connect(sandbox.id, api_url=gateway.url, api_key=gateway.admin_key)
        while not any(info.path.endswith("/runs") for info in direct.files.list()):
            time.sleep(0.05)
        direct.close()
        break_(road, age)
        go(gateway, sandbox)

    thread = in_background(disturb)
    result = sandbox.run_command(SILENT_COMMAND, timeout=50)
    thread.join(30)
    assert (result.stdout, result.exit_code, result.end) == ("done\n", 0, "ok")
    assert runs(sandbox) == b"x"


@every_break
def test_a_streamed_command(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    stream = sandbox.stream_command(f"echo first; {SILENT_COMMAND}")
    text = [next(iter(stream))]
    break_(road, age)
    go(gateway, sandbox)
    assert "".join([*text, *stream]) == "first\ndone\n"
    assert runs(sandbox) == b"x"


@every_break
def test_attached(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    command = sandbox.run_command(f"echo first; {SILENT_COMMAND}", background=True)
    stream = sandbox.attach(command.id)
    text = [next(iter(stream))]
    break_(road, age)
    go(gateway, sandbox)
    assert "".join([*text, *stream]) == "first\ndone\n"


@every_break
def test_rest_calls(sandbox: Sandbox, gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    context = sandbox.contexts.create(name="first")
    break_(road, age)
    assert sandbox.contexts.restart(context).id == context.id
    break_(road, age)
    second = sandbox.contexts.create(name="second")
    break_(road, age)
    assert {one.id for one in sandbox.contexts.list()} >= {context.id, second.id}
    break_(road, age)
    assert sandbox.contexts.remove(context) in (True, False)
    assert context.id not in {one.id for one in sandbox.contexts.list()}
    break_(road, age)
    assert sandbox.status().state == "running"


@every_break
def test_upload_and_download(
    sandbox: Sandbox, road: Road, age: Age, break_: Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WRITE_STALL", 1.5)
    content = os.urandom(24 * 1024 * 1024)
    once: list[int] = []

    def disturb(size: int) -> None:
        once.append(size)
        if sum(once) > 8 * 1024 * 1024 and not done.is_set():
            done.set()
            break_(road, age)

    done = threading.Event()
    sandbox.upload_file("big", content=content, on_progress=disturb)
    assert done.is_set()
    assert sandbox.run_command("sha256sum big").stdout.split()[0] == hashlib.sha256(content).hexdigest()
    done, once = threading.Event(), []
    target = sandbox.download_file("big", tmp_path / "big", on_progress=disturb)
    assert done.is_set()
    assert isinstance(target, Path)
    assert target.read_bytes() == content


def test_a_source_that_cannot_be_read_again(sandbox: Sandbox, road: Road) -> None:
    """What cannot be repeated says so, and at once."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    source = Pipe(os.urandom(8 * 1024 * 1024))
    with pytest.raises(GatewayUnavailable, match="cannot be read again"):
        sandbox.files.upload("pipe", content=source, on_progress=lambda size: road.cut())


@every_break
async def test_many_at_once(gateway: Gateway, road: Road, age: Age, break_: Break) -> None:
    """Asynchronous clients: code in two contexts, a command and a download, all over one broken road."""
    async with AsyncSandbox(runtime="python", api_url=road.url, api_key=gateway.admin_key) as sandbox:
        other = await sandbox.contexts.create()
        code = sandbox.stream_code(CODE)
        first = code.events()
        assert await anext(first)
        work = (
            asyncio.create_task(sandbox.run_code("open('runs', 'a').write('y'); 6 * 7", context=other)),
            asyncio.create_task(sandbox.run_command(SILENT_COMMAND.replace("runs", "commands"))),
        )
        await asyncio.to_thread(break_, road, age)
        await sandbox.files.write("go", "")
        execution, command = await asyncio.wait_for(asyncio.gather(*work), 60)
        async for _ in first:
            pass
        assert (code.execution.stdout, code.execution.end) == (LINES, "ok")
        assert execution.text == "42"
        assert command.stdout == "done\n"
        assert sorted(await sandbox.files.read("runs")) == sorted(b"xy")
        assert await sandbox.files.read("commands") == b"x"


def test_a_backlog_that_breaks_again_and_again(sandbox: Sandbox, road: Road, age: Age) -> None:
    """Each connection brings some of what waits, and breaks: all of it comes once, in order."""
    stream = sandbox.stream_code("print('begun', flush=True)\nfor i in range(4000): print(i, 'x' * 1000)")
    events = stream.events()
    next(events)
    road.cut_after = [100_000 * number for number in range(1, 12)]
    age()
    road.cut()
    list(events)
    expected = "begun\n" + "".join(f"{number} {'x' * 1000}\n" for number in range(4000))
    assert stream.execution.end == "ok"
    assert stream.execution.missed == 0
    assert stream.execution.stdout == expected


@pytest.mark.parametrize("what", ["code", "command"])
def test_a_gateway_that_stays_away_ends_the_call(
    sandbox: Sandbox, road: Road, age: Age, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(patience, "RETRY_FOR", 1.0)
    stream = (
        sandbox.stream_code("print(1, flush=True)\nimport time; time.sleep(100)")
        if what == "code"
        else sandbox.stream_command("echo 1; sleep 100")
    )
    next(iter(stream))
    age()
    road.close()
    road.cut()
    with pytest.raises(GatewayUnavailable, match="tried again for 1 s"):
        list(stream)
    road.open()
    monkeypatch.setattr(patience, "RETRY_FOR", 60.0)


def test_a_slow_road_is_no_dead_one(
    sandbox: Sandbox, road: Road, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Transfers that take many times the limit on silence, and never pause for as long."""
    content = os.urandom(400 * 1024)
    road.piece, road.pause = 8 * 1024, 0.08  # 100 kB/s: four seconds each way
    monkeypatch.setattr(connections, "WRITE_STALL", 3.0)
    before = road.connections
    sandbox.upload_file("slow", content=content)
    assert sandbox.files.read("slow") == content
    assert road.connections - before <= 2


@pytest.mark.heavy
def test_a_long_silence_is_not_cut(sandbox: Sandbox, road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat of the stream, every 15 s, keeps a command that says nothing from being given up."""
    monkeypatch.setattr(connections, "SILENCE", 20.0)
    before = road.connections
    result = sandbox.run_command("sleep 22; echo done")
    assert result.stdout == "done\n"
    assert road.connections - before <= 1
