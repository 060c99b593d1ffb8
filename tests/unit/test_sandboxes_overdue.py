"""An execution that nobody ends is ended with its sandbox; one that has ended or may run is left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes import overdue
from llmsafespace_gateway.sandboxes.overdue import Overdue, still
from llmsafespace_protocol.requests import CommandInfo, ExecutionInfo

LIMIT = 0.02


def execution(status: str, started: float) -> ExecutionInfo:
    return ExecutionInfo(
        id="e", context="c", session="s", status=status, started_at=time.time() + started, end=None
    )


def command(running: bool) -> CommandInfo:
    return CommandInfo(id="e", command="true", pid=1, running=running, started_at=time.time() - 1)


class Agent:
    """Answers as it is told, or not at all."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.asked = 0
        self.ended: list[tuple[str, str]] = []
        self._answer = answer

    async def ask(self, sandbox: str, method: str, params: msgspec.Struct, timeout: float) -> Any:
        self.asked += 1
        answer = self._answer(self.asked)
        if answer is None:
            await asyncio.sleep(3600)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def end(self, sandbox: str, word: str) -> bool:
        self.ended.append((sandbox, word))
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundredths of a second instead of seconds."""
    for name in ("GRACE", "ANSWER", "_AT_LEAST"):
        monkeypatch.setattr(overdue, name, 0.02)
    monkeypatch.setattr(overdue, "PAUSES", (0.01,) * 6)


async def settled(clock: Overdue) -> None:
    while clock._watched or clock._ending:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


UNREACHABLE = ApiError("service_unavailable", "no answer")


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        pytest.param(lambda n: None, True, id="it does not answer"),
        pytest.param(lambda n: UNREACHABLE, True, id="it cannot be reached"),
        pytest.param(lambda n: RuntimeError("the database is down"), True, id="asking fails"),
        pytest.param(lambda n: execution("running", -10), True, id="it runs on"),
        pytest.param(lambda n: command(True), True, id="a command runs on"),
        pytest.param(
            lambda n: execution("running", 1e9 if n < 3 else -10), True, id="it begins in the future"
        ),
        pytest.param(lambda n: execution("queued" if n < 3 else "running", -10), True, id="it was queued"),
        pytest.param(lambda n: execution("ended", -10), False, id="it has ended"),
        pytest.param(lambda n: command(False), False, id="a command has ended"),
        pytest.param(lambda n: ApiError("gone", "it has ended"), False, id="its sandbox has ended"),
        pytest.param(lambda n: ApiError("not_found", "what?"), False, id="nobody knows it"),
        pytest.param(
            lambda n: UNREACHABLE if n < 6 else execution("ended", -1), False, id="out of reach for a while"
        ),
        pytest.param(lambda n: None if n < 6 else execution("ended", -1), False, id="silent for a while"),
        pytest.param(
            lambda n: UNREACHABLE if n < 6 else execution("running", -10),
            True,
            id="out of reach, and runs on",
        ),
    ],
)
async def test_who_runs_on_is_ended(answer: Callable[[int], Any], ends: bool) -> None:
    agent = Agent(answer)
    clock = Overdue(agent.ask, agent.end)
    clock.watch("sb", "e", LIMIT)
    await settled(clock)
    assert agent.ended == ([("sb", "timeout")] if ends else [])


async def test_one_whose_end_was_seen_costs_no_question() -> None:
    agent = Agent(lambda n: None)
    clock = Overdue(agent.ask, agent.end)
    clock.watch("sb", "e", LIMIT)
    clock.ended("sb", "e")
    await asyncio.sleep(0.1)
    assert (agent.asked, agent.ended) == (0, [])


@pytest.mark.parametrize("stop", ["its end was seen", "its sandbox has ended"])
async def test_one_that_is_asked_about_is_left_alone_once_it_is_over(stop: str) -> None:
    """While the way to its agent is broken, too."""
    agent = Agent(lambda n: UNREACHABLE)
    clock = Overdue(agent.ask, agent.end)
    clock.watch("sb", "e", LIMIT)
    while agent.asked < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if stop == "its end was seen":
        clock.ended("sb", "e")
    else:
        clock.forget("sb")
    asked = agent.asked
    await asyncio.sleep(0.2)
    assert (agent.asked, agent.ended) == (asked, [])
    assert not clock._watched


async def test_the_end_of_a_sandbox_drops_its_timers_and_no_others() -> None:
    agent = Agent(lambda n: execution("running", -10))
    clock = Overdue(agent.ask, agent.end)
    for name in ("e", "f"):
        clock.watch("sb", name, LIMIT)
        clock.watch("other", name, LIMIT)
    clock.forget("sb")
    await settled(clock)
    assert {sandbox for sandbox, _ in agent.ended} == {"other"}


async def test_an_end_is_not_cut_short_by_itself() -> None:
    """Ending a sandbox drops its timers, and the one who ends it is one of those."""
    finished = asyncio.Event()

    async def end(sandbox: str, word: str) -> bool:
        clock.forget(sandbox)
        await asyncio.sleep(0.01)
        finished.set()
        return True

    clock = Overdue(Agent(lambda n: execution("running", -10)).ask, end)
    clock.watch("sb", "e", LIMIT)
    await asyncio.wait_for(finished.wait(), 10)


def test_what_an_agent_says_of_the_beginning_is_believed_only_so_far() -> None:
    now = time.time()
    assert still(execution("running", 1e9), 5.0, now) <= 5.0 + overdue.GRACE
    assert still(execution("running", -4.0), 5.0, now) == pytest.approx(1.0 + overdue.GRACE, abs=0.1)
    assert still(execution("running", -50.0), 5.0, now) < 0.0
