"""Following an execution whose sandbox says nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.events import Event, Stdout
from llmsafespace_gateway.services.runs import heard


async def _silent_after(count: int, closed: list[bool]) -> AsyncGenerator[Event]:
    try:
        for seq in range(1, count + 1):
            yield Stdout(seq=seq, text=str(seq))
        await asyncio.Event().wait()
    finally:
        closed.append(True)


async def _listen(events: AsyncGenerator[Event], seen: list[Event]) -> None:
    async for event in events:
        seen.append(event)


async def test_a_silent_agent_that_gives_no_sign_of_life_is_an_error_and_not_a_hang() -> None:
    seen: list[Event] = []
    closed: list[bool] = []

    async def dead() -> None:
        raise ApiError("service_unavailable", "no answer")

    with pytest.raises(ApiError, match="no answer"):
        await _listen(heard(_silent_after(2, closed), dead, silence=0.01), seen)
    assert [event.seq for event in seen] == [1, 2]
    assert closed == [True]


async def test_a_silent_agent_that_lives_is_waited_for() -> None:
    asked = 0
    closed: list[bool] = []

    async def alive() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise ApiError("gone", "the test has seen enough")

    with pytest.raises(ApiError, match="enough"):
        await _listen(heard(_silent_after(0, closed), alive, silence=0.01), [])
    assert asked == 3
