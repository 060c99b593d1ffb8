"""The keeper's clock: what it reads, what is over when, and when it looks again. The time is faked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmsafespace_gateway.backends.local.keeper import clock as clocks
from llmsafespace_gateway.backends.local.keeper import keeping
from llmsafespace_gateway.backends.local.keeper.clock import Clock
from llmsafespace_gateway.backends.local.keeper.keeping import Keeper
from llmsafespace_gateway.backends.local.keeper.side import Side

START = 1000.0


class Agent:
    """The agent's end of the pipe, and the folder that the gateway writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reading, self.writing = os.pipe()
        self.now = START

    def clock(self) -> Clock:
        return Clock(self.reading, str(self.folder))

    def say(self, *moments: float) -> None:
        for moment in moments:
            os.write(self.writing, int(moment * 1000).to_bytes(8, "little"))

    def until(self, moment: float | str) -> None:
        (self.folder / "until").write_text(str(moment))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    made = Agent(tmp_path)
    monkeypatch.setattr(clocks, "time", SimpleNamespace(monotonic=lambda: made.now))
    yield made
    os.close(made.reading)
    if made.writing >= 0:
        os.close(made.writing)


def test_nothing_is_due_when_nobody_has_said_anything(agent: Agent) -> None:
    clock = agent.clock()
    assert (clock.over(), clock.wait()) == (None, None)


def test_a_lifetime_is_over_at_its_moment(agent: Agent) -> None:
    agent.until(START + 5)
    clock = agent.clock()
    assert clock.wait() in (5000, 5001)
    agent.now += 4.999
    assert clock.over() is None
    agent.now = START + 5
    assert clock.over() == "expired"


def test_a_lifetime_can_become_longer_and_shorter(agent: Agent) -> None:
    agent.until(START + 5)
    clock = agent.clock()
    agent.until(START + 1000)
    clock.look()
    agent.now += 10
    assert clock.over() is None
    agent.until(START)
    clock.look()
    assert clock.over() == "expired"


@pytest.mark.parametrize("how", ["gone", "empty", "a folder", "words"])
def test_a_lifetime_that_cannot_be_read_again_stays_as_it_was(agent: Agent, how: str) -> None:
    agent.until(START + 5)
    clock = agent.clock()
    file = agent.folder / "until"
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "gone":
        file.write_text("" if how == "empty" else how)
    clock.look()
    agent.now += 5
    assert clock.over() == "expired"


def test_what_the_agent_said_last_counts(agent: Agent) -> None:
    clock = agent.clock()
    agent.say(START + 1, 0, START + 3)
    assert clock.listen()
    agent.now += 2
    assert (clock.over(), clock.wait()) == (None, 1001)
    agent.say(0)
    assert clock.listen()
    agent.now += 1000
    assert clock.over() is None


def test_a_running_executions_limit_is_over_at_its_moment(agent: Agent) -> None:
    clock = agent.clock()
    agent.say(START + 3)
    assert clock.listen()
    agent.now += 3
    assert clock.over() == "timeout"


def test_a_moment_may_come_in_pieces(agent: Agent) -> None:
    clock = agent.clock()
    whole = int((START + 3) * 1000).to_bytes(8, "little")
    for piece in (whole[:3], whole[3:7]):
        os.write(agent.writing, piece)
        assert clock.listen()
        assert clock.wait() is None or clock.resting
    os.write(agent.writing, whole[7:])
    assert clock.listen()
    agent.now += 3
    assert clock.over() == "timeout"


def test_no_nonsense_lengthens_a_life(agent: Agent) -> None:
    agent.until(START + 5)
    clock = agent.clock()
    for piece in (b"\xff", b"\xff" * 7, b"\xff" * 8, bytes(8), b"\x01" * 3, b"\xff" * 60_000):
        os.write(agent.writing, piece)
        assert clock.listen()
        assert 0 < (clock.wait() or 0) <= 5001
    agent.now += 5
    assert clock.over() == "expired"


def test_the_end_of_the_pipe_takes_nothing_back(agent: Agent) -> None:
    clock = agent.clock()
    agent.say(START + 3)
    assert clock.listen()
    os.close(agent.writing)
    agent.writing = -1
    assert not clock.listen()
    agent.now += 3
    assert clock.over() == "timeout"


def test_a_pipe_that_is_written_to_all_the_time_is_read_ten_times_a_second(agent: Agent) -> None:
    clock = agent.clock()
    agent.say(0)
    assert clock.listen()
    assert not clock.resting
    agent.say(0)
    assert clock.listen()
    assert (clock.resting, clock.rested()) == (True, False)
    assert 0 < (clock.wait() or 0) <= 101
    agent.now += 0.2
    assert (clock.rested(), clock.resting) == (True, False)


# -- the keeper with its clock -----------------------------------------------------------------------


class Kept:
    """A keeper whose sandboxes are processes that end by themselves, after some seconds and with a status."""

    def __init__(self, folder: Path, *sides: tuple[float, int]) -> None:
        lifeline, self.gateway = os.pipe()
        plan = {"folder": str(folder), "lifeline": lifeline}
        self.keeper = Keeper(plan)
        self.processes = []
        for seconds, status in sides:
            code = f"import time; time.sleep({seconds}); exit({status})"
            self.processes.append(subprocess.Popen([sys.executable, "-c", code]))
            side = Side(plan, {"cgroups": []}, None)
            side.child = self.processes[-1].pid
            side.child_fd = os.pidfd_open(side.child)
            self.keeper.sides.append(side)
        self.keeper.wakeup, self._signals = os.pipe()
        self.keeper.output, self._output = os.pipe()
        clock, self._agent = os.pipe()
        self.keeper.clock = Clock(clock, str(folder))
        self._open = [lifeline, self.keeper.wakeup, self.keeper.output, clock]
        self._open += [self.gateway, self._signals, self._output, self._agent]
        self._open += [side.child_fd for side in self.keeper.sides]

    def wait_without_gateway(self) -> None:
        os.close(self.gateway)
        self._open.remove(self.gateway)
        self.keeper.wait()

    def close(self) -> None:
        for side, process in zip(self.keeper.sides, self.processes, strict=True):
            if side.reaped is None:
                process.kill()
                process.wait()
            process.returncode = 0
        for descriptor in self._open:
            os.close(descriptor)


@pytest.mark.parametrize("claimed", [True, False], ids=["claimed", "warm"])
def test_a_gateway_that_dies_after_its_claim_leaves_a_limit(tmp_path: Path, claimed: bool) -> None:
    """The gateway writes the limit with the claim, and tells the keeper of it only after the bind."""
    kept = Kept(tmp_path, (5.0, 0))
    try:
        (tmp_path / "until").write_text(f"{time.monotonic() - 1:.3f}")
        if claimed:
            (tmp_path / "claim.json").write_text("{}")
        kept.wait_without_gateway()
        assert kept.keeper.exit_status is None
        assert kept.keeper.over == ("expired" if claimed else None)
    finally:
        kept.close()


@pytest.mark.parametrize(
    ("code", "agent", "status"),
    [((0.0, 7), (0.5, 3), 3), ((0.0, 7), (60.0, 3), 7), ((60.0, 7), (0.0, 3), 3)],
    ids=["the agent has the last word", "an agent without one", "the agent ends first"],
)
def test_the_code_and_its_agent_end(
    code: tuple[float, int],
    agent: tuple[float, int],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sandbox ends with either. The agent, which can tell why, is waited for, but not for ever."""
    monkeypatch.setattr(keeping, "_LAST_WORDS", 5.0 if agent[0] < 60.0 else 0.5)
    kept = Kept(tmp_path, code, agent)
    try:
        kept.keeper.wait()
        assert kept.keeper.exit_status == status
    finally:
        kept.close()
