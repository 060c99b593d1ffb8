"""The reaper tells each watcher once, whoever was first: the death or the watcher."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from llmsafespace_agent.inside.reaper import Reaper


@pytest.mark.parametrize(("code", "expected"), [("exit(3)", 3), ("import os; os.kill(os.getpid(), 15)", -15)])
@pytest.mark.parametrize("late", [False, True])
async def test_a_death_is_told_once(code: str, expected: int, late: bool) -> None:
    reaper = Reaper()
    reaper.start(asyncio.get_running_loop())
    told: asyncio.Queue[int] = asyncio.Queue()
    try:
        process = subprocess.Popen([sys.executable, "-c", code])
        process.returncode = 0  # the reaper collects it
        if late:
            async with asyncio.timeout(30):
                while os.path.exists(f"/proc/{process.pid}"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        reaper.watch(process.pid, told.put_nowait)
        assert await asyncio.wait_for(told.get(), 30) == expected
        assert told.empty()
    finally:
        reaper.stop()


async def test_a_new_process_does_not_inherit_an_old_status() -> None:
    reaper = Reaper()
    reaper.start(asyncio.get_running_loop())
    told: list[int] = []
    try:
        reaper._died(os.getpid(), 7)  # as if our pid had belonged to another child before
        reaper.watch(os.getpid(), told.append)
        await asyncio.sleep(0)
        assert told == []
    finally:
        reaper.stop()


def test_watching_needs_a_started_reaper() -> None:
    with pytest.raises(RuntimeError):
        Reaper().watch(1, print)
