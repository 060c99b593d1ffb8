"""Private gateways whose processes are killed: what lives is adopted or ended, nothing else is touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.local import records

# Serves the test's requests, one JSON line each: makes sandboxes, runs code in them, says who it is.
PROGRAM = """
import json, os, sys
from llmsafespace import Sandbox, embedded
sandboxes = []
for line in sys.stdin:
    what, *arguments = json.loads(line)
    if what == "make":
        sandboxes.append(Sandbox(runtime="python", idle_timeout=None))
        answer = len(sandboxes) - 1
    elif what == "run":
        execution = sandboxes[arguments[0]].run_code(arguments[1])
        answer = [execution.text, execution.end]
    elif what == "terminate":
        answer = sandboxes[arguments[0]].terminate()
    elif what == "who":
        embedded.endpoint()
        answer = [str(embedded._gateway.folder), embedded._gateway._process.pid]
    print(json.dumps(answer), flush=True)
"""


class Program:
    """A process with a private gateway."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMSAFE")}
        kept = {name: os.environ[name] for name in ("LLMSAFESPACE_RUNTIMES",) if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environment, **kept, "TMPDIR": str(folder)},
            text=True,
        )

    def ask(self, *request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def who(self) -> tuple[Path, int]:
        """The private gateway's folder and process."""
        folder, pid = self.ask("who")
        return Path(folder), pid

    def leave(self) -> None:
        """End as programs do."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(90) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Left:
    """What a private gateway and its sandboxes have on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: list[int] = []
        self.cgroups: list[str] = []
        for place in (folder / "data" / "sandboxes").iterdir():
            keeper = records.keeper_of(place)
            first = int((place / "first").read_text().split()[0])
            state = records.read(place / "state.json", records.State)
            assert keeper
            assert state is not None
            self.pids += [keeper, first]
            self.cgroups += state.cgroups
        assert self.pids

    def living(self) -> list[str]:
        """What is still there."""
        return [
            *(f"process {pid}" for pid in self.pids if not gone(pid)),
            *(path for path in (*self.cgroups, str(self.folder)) if Path(path).exists()),
        ]


def eventually(look: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not look() and time.monotonic() < deadline:
        time.sleep(0.05)
    return look()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def folder(data_root: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=data_root))


@pytest.fixture
def program(folder: Path) -> Iterator[Callable[[], Program]]:
    made: list[Program] = []

    def make() -> Program:
        made.append(Program(folder))
        return made[-1]

    yield make
    for each in made:
        if each.process.poll() is None:
            each.leave()


def test_a_killed_gateway_comes_back_with_its_sandboxes(program: Callable[[], Program]) -> None:
    """Twice in a row; objects that the program has go on, and nothing is left in the end."""
    user = program()
    user.ask("make")
    assert user.ask("run", 0, "value = 41; value") == ["41", "ok"]
    place, first = user.who()
    left = Left(place)
    for _ in range(2):
        _, pid = user.who()
        os.kill(pid, signal.SIGKILL)
        assert user.ask("run", 0, "value += 1; value")[1] == "ok"
        user.ask("make")
    assert user.ask("run", 0, "value") == ["43", "ok"]
    assert [user.ask("run", number, "6 * 7") for number in (1, 2)] == [["42", "ok"]] * 2
    assert user.who()[0] == place
    assert user.who()[1] != first
    user.leave()
    assert eventually(lambda: left.living() == []), left.living()


def test_a_program_that_ends_behind_its_killed_gateway(program: Callable[[], Program]) -> None:
    user = program()
    user.ask("make")
    place, pid = user.who()
    left = Left(place)
    os.kill(pid, signal.SIGKILL)
    user.leave()
    assert eventually(lambda: left.living() == []), left.living()


def test_a_killed_program(program: Callable[[], Program]) -> None:
    """Its gateway ends the sandboxes; the next one removes the folder."""
    user = program()
    user.ask("make")
    place, pid = user.who()
    left = Left(place)
    user.kill()
    assert eventually(lambda: gone(pid))
    assert eventually(lambda: left.living() == [str(place)]), left.living()
    other = program()
    other.ask("make")
    assert eventually(lambda: left.living() == []), left.living()


@pytest.mark.parametrize(
    "gateway_first",
    [True, pytest.param(False, marks=pytest.mark.heavy)],
    ids=["gateway first", "program first"],
)
def test_both_killed_and_another_one_beside(program: Callable[[], Program], gateway_first: bool) -> None:
    """The next start ends what they left, and touches no sandbox of a gateway that lives."""
    bystander = program()
    bystander.ask("make")
    assert bystander.ask("run", 0, "value = 1; value") == ["1", "ok"]
    user = program()
    user.ask("make")
    user.ask("make")
    place, pid = user.who()
    assert place != bystander.who()[0]
    left = Left(place)
    os.kill(user.process.pid, signal.SIGSTOP)  # it must not start its gateway again
    order = [pid, user.process.pid] if gateway_first else [user.process.pid, pid]
    for victim in order:
        os.kill(victim, signal.SIGKILL)
    user.process.wait(10)
    assert eventually(lambda: gone(pid))
    other = program()
    other.ask("make")
    if gateway_first:  # otherwise the gateway may have ended some of them itself
        assert place.exists() is False
    assert eventually(lambda: left.living() == []), left.living()
    assert bystander.ask("run", 0, "value += 1; value") == ["2", "ok"]
    assert other.ask("run", 0, "6 * 7") == ["42", "ok"]
    mine = Left(bystander.who()[0])
    bystander.leave()
    assert eventually(lambda: mine.living() == []), mine.living()


def test_two_that_start_at_once_find_what_is_left(program: Callable[[], Program]) -> None:
    user = program()
    user.ask("make")
    place, pid = user.who()
    left = Left(place)
    os.kill(user.process.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    user.kill()
    pair = [program(), program()]
    for each in pair:
        assert each.process.stdin is not None
        each.process.stdin.write(json.dumps(["make"]) + "\n")
        each.process.stdin.flush()
    for each in pair:
        assert each.process.stdout is not None
        assert each.process.stdout.readline() == "0\n"
    assert eventually(lambda: left.living() == []), left.living()
    assert [each.ask("run", 0, "1 + 1") for each in pair] == [["2", "ok"]] * 2
