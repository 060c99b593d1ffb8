"""Limits of time hold, and an end leaves nothing, whatever code did to its agent.

Also run as an ordinary user (see test_local_user).
"""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.local import LocalBackend, launch, records
from llmsafespace_gateway.backends.local import backend as local_backend
from llmsafespace_protocol.requests import Limits
from tests.integration import local_support as support

SOON = 0.5
LATER = 4.0  # seconds to spare for what must happen before, on a busy machine
WATCHED = 2.0  # seconds

BUSY = "while True: pass"
# What code could do to process 1 of its sandbox, or to anything else of its own: made by the test from
# outside, as the filter refuses it inside.
CROWD = f"""
import os
for _ in range(60):
    if os.fork() == 0:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        {BUSY}
"""
BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lifetime ends when it ends: these agents enforce nothing anyway."""
    monkeypatch.setattr(local_backend, "LIFE_MARGIN", 0.0)


def first_of(backend: LocalBackend, sandbox_id: str) -> int:
    """Process 1 of a sandbox, as the host numbers it."""
    return int((support.entry_of(backend, sandbox_id).folder / "first").read_text().split()[0])


def inside(first: int) -> list[int]:
    """The host's numbers of all processes in the pid namespace of `first`, which lives."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                if os.readlink(path / "ns/pid") == space:
                    found.append(int(path.name))
            except OSError:
                continue
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that are no corpses."""
    left = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            left.append(pid)
    return left


def processor_time(pid: int) -> float:
    """Seconds that a process has run."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def starve(pid: int) -> None:
    """What an attacker does to process 1: the last to run, on one processor that others keep busy."""
    os.sched_setaffinity(pid, [min(os.sched_getaffinity(0))])
    os.setpriority(os.PRIO_PROCESS, pid, 19)
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


async def end_of(backend: LocalBackend) -> tuple[str, str]:
    ends = backend.watch()
    try:
        ended = await asyncio.wait_for(anext(ends), 30)
    finally:
        await ends.aclose()
    return ended.end, ended.message


async def test_a_lifetime_ends_although_the_agent_is_frozen() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        os.kill(first_of(backend, "sb-a"), signal.SIGSTOP)
        await backend.set_lifetime("sb-a", SOON)
        end, message = await end_of(backend)
        assert (end, "maximum lifetime" in message) == ("expired", True)
        assert not await backend.living()


async def test_a_lifetime_can_become_shorter() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        for seconds in (1000.0, 0.0):
            await backend.set_lifetime("sb-a", seconds)
        assert (await end_of(backend))[0] == "expired"


async def test_a_lifetime_ends_without_a_gateway() -> None:
    async with support.data_folder() as folder:
        async with support.started(folder) as backend:
            await backend.claim(support.spec("sb-a"))
            await backend.set_lifetime("sb-a", SOON)
        await support.eventually(lambda: list((folder / "sandboxes").iterdir()) == [])
        async with support.started(folder) as backend:
            assert (await end_of(backend))[0] == "expired"


async def test_a_claim_says_how_long_a_sandbox_may_live() -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        for name in ("sb-warm", "sb-cold"):
            claim = await backend.claim(support.spec(name, use_warm_pool=name == "sb-warm"))
            assert claim.start.kind == name[3:]
            until = float((support.entry_of(backend, name).folder / "until").read_text())
            assert 0 < until - time.monotonic() - 86400 < 1000


async def test_a_gateway_that_dies_after_a_warm_claim_leaves_nothing_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its keeper started without a limit, and no signal told it of the claim's."""
    monkeypatch.setattr(launch, "TO_BIND", 0.0)
    async with support.data_folder() as folder:
        async with support.started(folder, pools=[support.pool()]) as backend:
            await support.available(backend, "warm", 1)
            claim = await backend.claim(support.spec("sb-a", limits=Limits(max_lifetime=SOON)))
            assert claim.start.kind == "warm"
        await support.eventually(lambda: list((folder / "sandboxes").iterdir()) == [])
        async with support.started(folder) as backend:
            assert (await end_of(backend))[0] == "expired"


async def test_a_frozen_agents_deadline_ends_the_sandbox_as_timeout() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await support.call(backend, "sb-a", "deadline", seconds=LATER)
        os.kill(first_of(backend, "sb-a"), signal.SIGSTOP)
        end, message = await end_of(backend)
        assert (end, "time limit" in message) == ("timeout", True)


async def test_a_deadline_that_is_taken_back_in_time_ends_nothing() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        for seconds in (LATER, None, LATER, 1000.0):
            await support.call(backend, "sb-a", "deadline", seconds=seconds)
        await asyncio.sleep(LATER + SOON)
        assert await support.run(backend, "sb-a", "print('here')") == "here"


async def test_nonsense_on_the_clocks_pipe_lengthens_no_life_and_keeps_nothing_busy() -> None:
    """Parts of a moment, the end of time, and more than anybody reads, without an end."""
    pieces = ["ff", "ff" * 7, "ff" * 8, "00" * 8, "01" * 3, "ff" * 60_000]
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await support.call(backend, "sb-a", "nonsense", pieces=pieces)
        keeper = records.keeper_of(support.entry_of(backend, "sb-a").folder)
        assert keeper is not None
        before = processor_time(keeper)
        await asyncio.sleep(WATCHED)
        assert processor_time(keeper) - before < WATCHED / 10
        await backend.set_lifetime("sb-a", 0.0)
        assert (await end_of(backend))[0] == "expired"


@pytest.mark.parametrize("code", [CROWD, BOMB], ids=["crowd", "bomb"])
async def test_an_end_leaves_no_process_although_process_1_starves(code: str) -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        first = first_of(backend, "sb-a")
        await support.call(backend, "sb-a", "spawn", code=code, session=False)
        await support.eventually(lambda: len(inside(first)) > 40)
        starve(first)
        living = inside(first)
        assert await backend.destroy("sb-a")
        assert alive(living) == []
        assert support.processes_of(backend._data_dir) == []


async def test_what_a_killed_keeper_leaves_is_killed_although_process_1_starves() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        first = first_of(backend, "sb-a")
        await support.call(backend, "sb-a", "spawn", code=CROWD, session=False)
        await support.eventually(lambda: len(inside(first)) > 40)
        starve(first)
        living = inside(first)
        keeper = records.keeper_of(support.entry_of(backend, "sb-a").folder)
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        assert (await end_of(backend))[0] == "lost"
        assert alive(living) == []
