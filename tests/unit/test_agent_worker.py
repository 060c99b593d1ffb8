"""The agent's way inside through a worker: a real worker, and ones that lie, are silent or gone."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import llmsafespace_agent
from llmsafespace_agent.inside import remote
from llmsafespace_agent.inside.inside import NOWHERE, Streams
from llmsafespace_agent.inside.own import OwnProcesses
from llmsafespace_agent.inside.remote import RemoteProcesses
from llmsafespace_agent.inside.worker import protocol
from llmsafespace_agent.server.commands import Commands
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.errors import AgentError
from llmsafespace_protocol.requests import CommandStart

WORKER = Path(llmsafespace_agent.__file__).parent / "inside" / "worker"
QUIET = Streams(NOWHERE, NOWHERE, NOWHERE)
ENV = {"PATH": "/usr/bin:/bin"}
LONG = 60.0


@pytest.fixture
async def inside(tmp_path: Path) -> AsyncIterator[RemoteProcesses]:
    """A real worker, which is a process like any other here."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", str(WORKER), str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        made = RemoteProcesses(ours.detach())
        try:
            await made.start(0, 0, str(tmp_path))
            yield made
        finally:
            process.kill()


async def code_of(inside: RemoteProcesses, pid: int) -> int:
    """How a process ends."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    inside.watch(pid, told.set_result)
    return await asyncio.wait_for(told, LONG)


async def test_a_process_talks_and_its_end_is_told(inside: RemoteProcesses) -> None:
    reading, writing = os.pipe()
    line = 'echo "$WHO in $PWD"; ls -l /proc/self/fd | grep -c socket; kill -9 $$'
    pid = await inside.spawn(
        ["sh", "-c", line], {**ENV, "WHO": "ann"}, "/", Streams(NOWHERE, writing, writing)
    )
    os.close(writing)
    assert await code_of(inside, pid) == -9
    assert os.read(reading, 100).splitlines() == [b"ann in /", b"0"]
    os.close(reading)


async def test_descriptors_keep_their_numbers(inside: RemoteProcesses) -> None:
    reading, writing = os.pipe()
    pid = await inside.spawn(
        [sys.executable, "-c", f"import os; os.write({writing}, b'hi'); exit(3)"],
        ENV,
        "/",
        QUIET,
        passed=[writing],
    )
    os.close(writing)
    assert (await code_of(inside, pid), os.read(reading, 10)) == (3, b"hi")
    os.close(reading)


@pytest.mark.parametrize(
    ("argv", "cwd", "number"),
    [
        (["no-such-program"], "/", errno.ENOENT),
        (["/etc/passwd"], "/", errno.EACCES),
        (["true"], "/no-such-folder", errno.ENOENT),
    ],
)
async def test_what_cannot_be_started_says_why(
    inside: RemoteProcesses, argv: list[str], cwd: str, number: int
) -> None:
    with pytest.raises(OSError, match=r"No such|denied") as raised:
        await inside.spawn(argv, ENV, cwd, QUIET)
    assert raised.value.errno == number


async def test_signals_reach_the_tree(inside: RemoteProcesses) -> None:
    pid = await inside.spawn(["sh", "-c", "setsid sleep 1000 & sleep 1000"], ENV, "/", QUIET)
    inside.signal_tree(pid, signal.SIGTERM)
    assert await code_of(inside, pid) == -15
    for harmless in (-1, 0, 1):
        inside.signal_group(harmless, signal.SIGKILL)
        inside.kill(harmless)
    assert (await inside.measure()).processes >= 1


async def test_long_wishes_arrive_whole(inside: RemoteProcesses) -> None:
    """More than a socket holds, with descriptors between them."""
    reading, writing = os.pipe()
    env = {**ENV, **{f"V{number}": "x" * 100_000 for number in range(8)}}
    program = f"import os; os.write({writing}, b'%d ' % len(os.environ['V7']))"
    started = [
        inside.spawn([sys.executable, "-c", program], env, "/", QUIET, passed=[writing]) for _ in range(4)
    ]
    for pid in await asyncio.gather(*started):
        assert await code_of(inside, pid) == 0
    os.close(writing)
    assert os.read(reading, 1000) == b"100000 " * 4
    os.close(reading)


async def test_what_is_held_is_measured(inside: RemoteProcesses) -> None:
    pid = await inside.spawn([sys.executable, "-c", "input()"], ENV, "/", QUIET)
    await code_of(inside, pid)
    pid = await inside.spawn([sys.executable, "-c", "import time; time.sleep(1000)"], ENV, "/", QUIET)
    assert set(await inside.held([pid])) == {pid}
    assert (await inside.measure()).processes == 2
    inside.kill(pid)
    assert await code_of(inside, pid) == -9


async def test_the_worker_is_lean(inside: RemoteProcesses) -> None:
    """Every sandbox has one: it imports what is built into the interpreter."""
    program = "import sys; sys.argv = ['', '-1']; sys.path[:0] = [PATH]\n"
    program += "import llmsafespace_agent.inside.worker.serving; print(*sys.modules)"
    program = program.replace("PATH", repr(str(WORKER.parents[2])))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, check=True)
    heavy = {
        b"typing",
        b"contextlib",
        b"asyncio",
        b"json",
        b"subprocess",
        b"socket",
        b"signal",
        b"enum",
        b"re",
    }
    assert not heavy & set(done.stdout.split())


# -- workers that are none --------------------------------------------------------------------------------


@pytest.fixture
async def lying() -> AsyncIterator[tuple[RemoteProcesses, socket.socket]]:
    """The agent's side, and the socket at whose other end a worker should be."""
    ours, theirs = socket.socketpair()
    made = RemoteProcesses(ours.detach())
    root = os.open("/", os.O_PATH)
    socket.send_fds(theirs, [protocol.FRAME.pack(protocol.HELLO, 0, 0, 0, 0, 0)], [root])
    os.close(root)
    await made.start(0, 0, "/")
    yield made, theirs
    theirs.close()


async def test_a_silent_worker_hangs_nobody(
    lying: tuple[RemoteProcesses, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, theirs = lying
    monkeypatch.setattr(remote, "_SPAWN", 0.05)
    monkeypatch.setattr(remote, "_HELD", 0.05)
    before = inside.total
    assert await inside.measure() == before
    assert await inside.held([7]) == {}
    with pytest.raises(OSError, match="too busy") as raised:
        await inside.spawn(["true"], ENV, "/", QUIET)
    assert raised.value.errno == errno.EAGAIN
    theirs.setblocking(False)
    told = theirs.recv(1 << 20)
    theirs.sendall(protocol.FRAME.pack(protocol.ANSWER, 3, 77, 0, 0, 0))  # it comes late: nobody wants it
    wanted = protocol.pack(("signal", 77, 9, protocol.TREE))
    async with asyncio.timeout(LONG):
        while wanted not in told:
            await asyncio.sleep(0)
            try:
                told += theirs.recv(1 << 20)
            except BlockingIOError:
                continue


async def test_what_waits_for_a_worker_is_bounded(lying: tuple[RemoteProcesses, socket.socket]) -> None:
    inside, _ = lying
    for _ in range(200):
        inside._send(("watch", "x" * 1_000_000))
    assert inside._waiting <= remote._WAITING + 2_000_000
    with pytest.raises(OSError, match="does not react"):
        await inside.spawn(["true"], ENV, "/", QUIET)


async def test_lies_are_figures_only(lying: tuple[RemoteProcesses, socket.socket]) -> None:
    """Whatever it says: nothing is raised, and nothing grows without bound."""
    inside, theirs = lying
    counted: list[int] = []
    inside.count_memory(1, lambda used, held: counted.append(used))
    for kind in range(256):
        for number in (0, 1, 2**32 - 1):
            theirs.sendall(protocol.FRAME.pack(kind, number, -(2**63), 2**63 - 1, -1, 0))
        await asyncio.sleep(0)
    for pid in range(5000):
        theirs.sendall(protocol.FRAME.pack(protocol.DIED, 0, pid, 0, 0, 0))
        await asyncio.sleep(0)
    theirs.sendall(protocol.FRAME.pack(protocol.COUNT, 0, 5, 0, 0, 0))
    async with asyncio.timeout(LONG):
        while counted[-1:] != [5]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(inside._dead) <= remote._UNCLAIMED


async def test_a_worker_that_is_gone_takes_all_along(lying: tuple[RemoteProcesses, socket.socket]) -> None:
    inside, theirs = lying
    gone = asyncio.Event()
    inside.on_end = gone.set
    watching = asyncio.ensure_future(code_of(inside, 5))
    spawning = inside.spawn(["true"], ENV, "/", QUIET)
    await asyncio.sleep(0)
    theirs.close()
    assert await watching == -9
    with pytest.raises(OSError, match="ended"):
        await spawning
    await asyncio.wait_for(gone.wait(), LONG)
    assert await code_of(inside, 6) == -9
    with pytest.raises(OSError, match="react"):
        await inside.spawn(["true"], ENV, "/", QUIET)


@pytest.mark.parametrize("way", ["own", "worker"])
async def test_why_something_is_no_folder(way: str, inside: RemoteProcesses, tmp_path: Path) -> None:
    looking = inside if way == "worker" else OwnProcesses()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(tmp_path)
    names = ("", "link", "file", "missing", "file/below", "loop")
    errors = [0, 0, errno.ENOTDIR, errno.ENOENT, errno.ENOTDIR, errno.ELOOP]
    assert [looking.folder_error(f"{tmp_path}/{name}".rstrip("/")) for name in names] == errors


async def test_a_command_is_there_when_it_has_a_process(tmp_path: Path) -> None:
    """Its id is taken before: the same request at once waits for the same command."""
    ours, theirs = socket.socketpair()
    silent = RemoteProcesses(ours.detach())
    commands = Commands(silent, tmp_path, "/", dict, [], Deadlines(None))
    wish = CommandStart(id="c", command="true")
    both = [asyncio.create_task(commands.start(wish)) for _ in range(2)]
    await asyncio.sleep(0)
    assert list(commands) == []
    with pytest.raises(AgentError, match="no command"):
        commands.get("c")
    with theirs:
        assert theirs.recv(65536).count(b"spawn") == 1
        theirs.send(protocol.FRAME.pack(protocol.ANSWER, 1, 77, 0, 0, 0))
        silent._readable()
        first, second = await asyncio.gather(*both)
        assert first is second is commands.get("c")
        assert (first.pid, list(commands)) == (77, [first])
        theirs.send(protocol.FRAME.pack(protocol.DIED, 0, 77, 0, 0, 0))
        silent._readable()
        await asyncio.sleep(0.1)
        assert first.info().end == "ok"
