"""Turns to start a sandbox: people first, pools in what is left, nobody held up by one that hangs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from llmsafespace_gateway.backends.local import starts
from llmsafespace_gateway.backends.local.starts import Starts


class Line:
    """Tasks that take turns and leave them when told to."""

    def __init__(self, at_once: int) -> None:
        self.starts = Starts(at_once)
        self.got: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, name: str, *, pool: bool = False) -> None:
        self.leave[name] = asyncio.Event()

        async def work() -> None:
            async with self.starts.turn(pool=pool):
                self.got.append(name)
                await self.leave[name].wait()

        self.tasks[name] = asyncio.create_task(work())
        await self.settle()

    async def go(self, name: str) -> None:
        self.leave[name].set()
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await self.settle()

    async def end(self) -> None:
        for name in self.leave:
            self.leave[name].set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_people_go_before_pools() -> None:
    line = Line(1)
    await line.join("first", pool=True)
    await line.join("pool", pool=True)
    await line.join("ada")
    await line.join("bob")
    for name in ("first", "ada", "bob"):
        await line.go(name)
    assert line.got == ["first", "ada", "bob", "pool"]
    await line.end()


async def test_a_pool_is_not_put_off_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "PATIENCE", -1.0)
    line = Line(1)
    await line.join("first")
    await line.join("pool", pool=True)
    await line.join("ada")
    await line.go("first")
    assert line.got == ["first", "pool"]
    await line.end()


async def test_one_that_hangs_gives_its_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "SLOW", 0.0)
    line = Line(1)
    await line.join("hanging", pool=True)
    await line.join("ada")
    for _ in range(3):
        await line.settle()
    assert line.got == ["hanging", "ada"]
    await line.end()
    assert line.starts._free == 1


@pytest.mark.parametrize("who", ["waiting", "granted", "working"])
async def test_turns_are_never_lost(who: str) -> None:
    line = Line(1)
    await line.join("first")
    await line.join("second")
    if who == "waiting":
        await line.cancel("second")
    elif who == "granted":
        line.leave["first"].set()
        for _ in range(2):  # the turn is granted, and not yet taken
            await asyncio.sleep(0)
        await line.cancel("second")
    else:
        await line.cancel("first")
    await line.join("third")
    await line.end()
    with contextlib.suppress(asyncio.CancelledError):
        async with line.starts.turn() as waited:
            assert not waited
    assert line.starts._free == 1


@pytest.mark.parametrize("granted", [False, True], ids=["before the grant", "after the grant"])
@pytest.mark.parametrize("pools", [(), ("second",), ("third",), ("second", "third")], ids=str)
async def test_no_turn_goes_to_those_who_leave_at_the_same_moment(
    pools: tuple[str, ...], granted: bool
) -> None:
    """A waiter that is cancelled stays in its queue until its task runs: nothing may be granted to it."""
    line = Line(1)
    await line.join("first")
    for name in ("second", "third", "fourth"):
        await line.join(name, pool=name in pools)
    line.leave["first"].set()
    if granted:
        await asyncio.sleep(0)
    for name in ("second", "third"):
        line.tasks[name].cancel()
    await line.settle()
    assert line.got == ["first", "fourth"]
    assert all(line.tasks[name].cancelled() for name in ("second", "third"))
    await line.end()
    assert line.starts._free == 1
