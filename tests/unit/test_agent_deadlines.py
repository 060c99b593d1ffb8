"""What the agent tells the clock outside: never too late, and seldom."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from llmsafespace_agent.server import deadlines
from llmsafespace_agent.server.deadlines import Deadlines

NOW = 1000.0  # the faked clock stands still


class Pipe:
    """What was told, in seconds from now; 0 for none."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def told(self) -> list[float]:
        try:
            said = os.read(self.reading, 65536)
        except BlockingIOError:
            return []
        moments = [int.from_bytes(said[n : n + 8], "little") for n in range(0, len(said), 8)]
        return [moment and moment / 1000 - NOW for moment in moments]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    made = Pipe()
    monkeypatch.setattr(deadlines, "_MAY_WAIT", 0.05)
    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=lambda: NOW))
    yield made
    os.close(made.reading)
    os.close(made.writing)


async def test_the_first_and_every_earlier_moment_are_told_at_once(pipe: Pipe) -> None:
    clock = Deadlines(pipe.writing)
    clock.set("a", 100)
    assert pipe.told() == [100]
    clock.set("b", 200)
    assert pipe.told() == []
    clock.set("c", 50)
    assert pipe.told() == [50]


async def test_a_later_moment_and_none_are_told_soon(pipe: Pipe) -> None:
    clock = Deadlines(pipe.writing)
    clock.set("a", 100)
    clock.set("b", 200)
    clock.clear("a")
    await asyncio.sleep(0.1)
    assert pipe.told() == [100, 200]
    clock.clear("b")
    await asyncio.sleep(0.1)
    assert pipe.told() == [0]
    await asyncio.sleep(0.1)
    assert pipe.told() == []


async def test_the_moment_of_one_that_has_begun_late_moves_on(pipe: Pipe) -> None:
    clock = Deadlines(pipe.writing)
    clock.set("a", 100)
    clock.set("a", 120)
    await asyncio.sleep(0.1)
    assert pipe.told() == [100, 120]


async def test_a_moment_that_is_near_is_taken_back_at_once(pipe: Pipe) -> None:
    clock = Deadlines(pipe.writing)
    clock.set("a", 2)
    clock.clear("a")
    assert pipe.told() == [2, 0]


async def test_many_short_executions_cost_few_messages(pipe: Pipe) -> None:
    clock = Deadlines(pipe.writing)
    for each in range(1000):
        clock.set(each, 300)
        clock.clear(each)
    await asyncio.sleep(0.1)
    assert pipe.told() == [300, 0]


async def test_a_clock_that_does_not_read_is_told_when_it_reads_again(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    while select.select([], [pipe.writing], [], 0)[1]:
        os.write(pipe.writing, bytes(4096))
    clock = Deadlines(pipe.writing)
    clock.set("a", 100)
    while pipe.told():
        pass
    await asyncio.sleep(0.1)
    assert pipe.told() == [100]


async def test_no_clock_and_a_clock_that_is_gone_are_no_trouble() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for clock in (Deadlines(None), Deadlines(writing)):
        clock.set("a", 1)
        clock.clear("a")
    os.close(writing)
