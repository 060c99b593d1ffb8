"""Starting a keeper and asking its agent, when one of them hangs or does not keep to the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from llmsafespace_gateway.backends.local import launch, limits, records, sweeping
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import prove_as_agent

TOKEN = "ab" * 32
DEEP = b'{"x":' + b"[" * 100_000

# Detaches as a keeper does, holds its folder's lock, and hangs with its standard output open.
HANGING = """
import fcntl, marshal, os, signal, sys, time
plan = marshal.load(sys.stdin.buffer)
if os.fork():
    os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
lock = os.open(plan["folder"] + "/lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.lockf(lock, fcntl.LOCK_EX)
time.sleep(20)
"""


# -- a keeper that hangs -------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name in ("sandboxes", "ended"):
        (tmp_path / name).mkdir()
    return Host(data_dir=tmp_path, python=sys.executable, bwrap=None, is_root=False, hierarchy=limits.NONE)


@pytest.fixture
def hanging(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a sandbox whose keeper never answers."""
    program = tmp_path / "hanging.py"
    program.write_text(HANGING)
    monkeypatch.setattr(launch, "KEEPER", program)
    folder = host.data_dir / "sandboxes" / "aa"
    launch._make_folder(host, folder)
    yield folder
    pid = records.keeper_of(folder)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def test_a_start_whose_keeper_hangs_fails_in_time_and_leaves_nothing(
    host: Host, hanging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "START_TIMEOUT", 3.0)
    monkeypatch.setattr(sweeping, "_KEEPER_WITHIN", 1.0)
    with pytest.raises(ApiError, match="did not start in time"):
        launch.spawn(host.python, {"folder": str(hanging)}, ())
    assert records.keeper_of(hanging) is not None, "its end was waited for"
    sweeping.undo_start(host, hanging)
    assert records.keeper_of(hanging) is None
    assert not hanging.exists()
    assert list((host.data_dir / "ended").iterdir()) == []


# -- an agent that does not answer, or answers nonsense ------------------------------------------------

Serve = Callable[[FrameStream], Awaitable[None]]


@contextlib.asynccontextmanager
async def agent(folder: Path, serve: Serve | None) -> AsyncIterator[list[FrameStream]]:
    """Listens as an agent does; `serve` None: every connection is closed at once."""
    accepted: list[FrameStream] = []
    tasks: set[asyncio.Future[None]] = set()

    class Incoming(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.append(self)
            if serve is None:
                self.abort()
            else:
                tasks.add(asyncio.ensure_future(serve(self)))

    (folder / "lock").touch()
    server = await asyncio.get_running_loop().create_unix_server(Incoming, str(folder / launch.SOCKET))
    try:
        yield accepted
    finally:
        server.close()
        for stream in accepted:
            stream.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def nonsense_after_the_proof(*said: bytes) -> Serve:
    async def serve(stream: FrameStream) -> None:
        await prove_as_agent(stream, bytes.fromhex(TOKEN), "")
        for each in said:
            stream.send(FrameKind.JSON, each)
        stream.receive(lambda kind, body: None)
        await stream.wait_closed()

    return serve


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox lives all the time."""
    monkeypatch.setattr(records, "keeper_of", lambda folder: os.getpid())


@pytest.mark.usefixtures("kept")
async def test_an_agent_that_hangs_up_keeps_nothing_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "READY_TIMEOUT", 0.5)
    async with agent(tmp_path, None) as accepted:
        with pytest.raises(ApiError, match="did not start in time"):
            await launch.ready(tmp_path, TOKEN)
        assert 1 <= len(accepted) <= 12


NONSENSE = {
    "no JSON": b"\xff",
    "no UTF-8": b'{"error": {"code": "\xff", "message": ""}, "nonce": "\xff", "proof": ""}',
    "another type": b"[1]",
    "too deep": DEEP,
}


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("late", [False, True], ids=["to the open", "to ready"])
async def test_an_agents_nonsense_is_a_start_that_failed(tmp_path: Path, said: bytes, late: bool) -> None:
    said_in_order = (b"{}", said) if late else (said,)
    async with agent(tmp_path, nonsense_after_the_proof(*said_in_order)) as accepted:
        with pytest.raises(ApiError, match="failed before a kernel was ready"):
            await launch.ready(tmp_path, TOKEN)
        await asyncio.wait_for(accepted[0].wait_closed(), 30)


@pytest.mark.usefixtures("kept")
async def test_a_result_that_is_nonsense_is_a_start_that_failed(tmp_path: Path) -> None:
    answer = msgspec.json.encode({"id": 1, "result": {"state": 1}})
    async with agent(tmp_path, nonsense_after_the_proof(b"{}", answer)):
        with pytest.raises(ApiError, match="failed before a kernel was ready"):
            await launch.ready(tmp_path, TOKEN)
