"""Executions in the audit log: what is the same is once, what may run again is again, memory is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from llmsafespace_gateway.access import executions
from llmsafespace_gateway.access.executions import ExecutionLog, Mark, mark_of
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.access.rates import RateLimited, RateLimits
from llmsafespace_gateway.store.rows import AuditRow

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])
CODE = mark_of("code", "x = 1")
COMMAND = mark_of("command", "x = 1")


class World:
    """A log with what it wrote and counted."""

    def __init__(self, limits: RateLimits | None = None) -> None:
        self.rows: list[tuple[str, str, str]] = []
        self.counted: list[str] = []
        self.again: list[bool] = []
        self.log = ExecutionLog(limits or RateLimits(1e6, 10**6), self, self._write, None)  # type: ignore[arg-type]
        self.log.count = lambda door, outcome: self.counted.append(outcome)

    def add_execution(
        self, who: Any, action: str, target: str, details: Any, *, mark: str, again: bool, count: Any
    ) -> AuditRow:
        """As the audit log does it, which writes at once."""
        self._write(ADA, action, target, "ok", **details)
        self.again.append(again)
        count()
        return AuditRow(
            id=str(len(self.rows)), at=0.0, action=action, target=target, outcome="ok", details=details
        )

    def withdraw(self, row: AuditRow) -> None:
        del self.rows[int(row.id) - 1]

    def _write(self, principal: Principal, action: str, target: str, outcome: str, **details: Any) -> None:
        self.rows.append((target, details["execution"], outcome))

    def run(self, execution: str, mark: Mark | None, sandbox: str = "sb", door: Any = "stream") -> None:
        self.log.admit(ADA, sandbox, execution, door, mark)
        self.log.note(ADA, sandbox, execution, door, mark=mark)


def test_the_same_request_is_one_execution() -> None:
    world = World(RateLimits(0.001, 1))
    for _ in range(20):
        world.run("x", CODE)
    assert world.rows == [("sb", "x", "ok")]
    assert world.counted == ["ok"]


@pytest.mark.parametrize(
    "again",
    [
        (COMMAND, "sb", "stream"),
        (mark_of("code", "x = 2"), "sb", "stream"),
        (CODE, "sb-2", "stream"),
        (None, "sb", "jupyter"),
    ],
    ids=["as a command", "other content", "in another sandbox", "plain Jupyter"],
)
def test_what_runs_beside_the_first_is_another_execution(again: tuple[Mark | None, str, str]) -> None:
    world = World()
    world.run("x", CODE)
    world.run("x", *again)
    assert len(world.rows) == len(world.counted) == 2


def test_an_unmarked_execution_is_always_a_new_one() -> None:
    world = World()
    for _ in range(3):
        world.run("x", None, door="jupyter")
    world.run("x", CODE)
    assert len(world.rows) == 4


@pytest.mark.parametrize(
    ("mark", "kept", "door"),
    [(CODE, 10_000, "stream"), (COMMAND, 256, "stream"), (CODE, 10_000, "jupyter")],
    ids=["code", "commands", "pushed out by plain Jupyter"],
)
def test_what_the_agent_may_have_forgotten_is_no_repetition(mark: Mark, kept: int, door: str) -> None:
    """The agent keeps so many ids of a sandbox, and runs older ones anew."""
    world = World()
    world.run("first", mark)
    for number in range(kept - 1):
        world.run(f"e{number}", mark if door == "stream" else None, door=door)
    world.run("first", mark)
    assert world.rows.count(("sb", "first", "ok")) == 2
    assert world.again[-1]
    world.run("first", mark)
    assert world.rows.count(("sb", "first", "ok")) == 2


def test_other_sandboxes_push_nothing_out() -> None:
    world = World()
    world.run("first", COMMAND)
    for number in range(1000):
        world.run("x", COMMAND, f"sb-{number}")
    world.run("first", COMMAND)
    assert world.rows.count(("sb", "first", "ok")) == 1


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executions, "_REMEMBERED", 50)
    world = World()
    for number in range(500):
        world.run("x" * 100_000, mark_of("code", number), f"sb-{number}")
    seen = world.log._seen
    assert (len(seen._numbers), len(seen._counters)) == (50, 50)
    assert {len(key) for key in seen._numbers} == {16}


def test_an_execution_over_the_limit_is_noted_as_refused() -> None:
    world = World(RateLimits(0.001, 1))
    for number in range(5):
        world.run(str(number), CODE)
    with pytest.raises(RateLimited):
        world.run("5", CODE)
    assert world.rows[-1] == ("sb", "5", "rate_limited")
    assert world.counted[-1] == "rate_limited"


@pytest.mark.parametrize("door", ["durable", "jupyter"])
def test_what_the_sandbox_refuses_was_not_accepted(door: Any) -> None:
    world = World()
    mark = CODE if door == "durable" else None
    world.run("x", mark, door=door)
    world.log.refused_by_sandbox(ADA, "sb", "x", door, "conflict")
    assert world.rows == [("sb", "x", "conflict")]
    world.log.refused_by_sandbox(ADA, "sb", "x", door, "conflict")  # it has refused that already
    world.log.refused_by_sandbox(ADA, "sb", "y", door, "made up")
    assert world.rows == [("sb", "x", "conflict")]
    world.run("x", mark, door=door)  # this time it runs
    assert world.rows[-1] == ("sb", "x", "ok")


def test_what_a_sandbox_says_is_no_word_of_the_log() -> None:
    world = World()
    world.run("x", CODE, door="durable")
    world.log.refused_by_sandbox(ADA, "sb", "x", "durable", "any word")
    assert world.rows == [("sb", "x", "invalid_request")]
