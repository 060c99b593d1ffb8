"""Private gateways that end: they are started again until one serves, or until it makes no sense any more."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmsafespace import GatewayUnavailable, embedded
from llmsafespace.embedded import EmbeddedGateway

# What the n-th start does is the n-th word of the plan, the last one again and again.
STAND_IN = """
import json, sys
from pathlib import Path
folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / "starts").open("a").write("x")
what = plan[min((folder / "starts").stat().st_size, len(plan)) - 1]
if what == "fails":
    sys.exit("no room")
print(json.dumps({"ready": True}), flush=True)
(folder / "served").open("a").write("x")
if what == "serves":
    sys.stdin.read()
"""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., EmbeddedGateway]]:
    """Make a private gateway whose processes follow a plan."""
    made: list[EmbeddedGateway] = []
    monkeypatch.setattr(embedded, "_RESTART_PAUSE", 0.01)

    def build(*plan: str) -> EmbeddedGateway:
        def command(folder: Path, socket: str) -> list[str]:
            return [sys.executable, "-c", STAND_IN, str(folder), json.dumps(plan)]

        monkeypatch.setattr(embedded, "command", command)
        made.append(EmbeddedGateway())
        return made[-1]

    yield build
    for gateway in made:
        gateway.stop()


def starts(gateway: EmbeddedGateway) -> int:
    return (gateway.folder / "starts").stat().st_size


def served(gateway: EmbeddedGateway) -> int:
    """How many starts have told that they are ready."""
    told = gateway.folder / "served"
    return told.stat().st_size if told.exists() else 0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_start_that_fails_is_tried_again(make: Callable[..., EmbeddedGateway], failures: int) -> None:
    gateway = make("serves", *["fails"] * failures, "serves")
    gateway.wait_ready()
    until(lambda: served(gateway) == 1)
    gateway._process.kill()
    until(lambda: served(gateway) == 2)
    assert starts(gateway) == 2 + failures
    assert gateway.alive
    serving = gateway._process
    with pytest.raises(subprocess.TimeoutExpired):
        serving.wait(0.3)


@pytest.mark.parametrize("what", ["fails", "ends"])
def test_one_that_never_serves_is_given_up(make: Callable[..., EmbeddedGateway], what: str) -> None:
    gateway = make("serves", what)
    gateway.wait_ready()
    gateway._process.kill()
    until(lambda: not gateway.alive)
    assert starts(gateway) == 1 + embedded._MOST_RESTARTS


def test_one_that_served_for_long_has_all_its_restarts(
    make: Callable[..., EmbeddedGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_LIVED", 0.0)
    gateway = make("serves")
    gateway.wait_ready()
    until(lambda: served(gateway) == 1)
    for number in range(2, 8):
        gateway._process.kill()
        until(functools.partial(lambda expected: served(gateway) == expected, number))
    assert gateway.alive


def test_processes_that_cannot_be_made(
    make: Callable[..., EmbeddedGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make("serves")
    gateway.wait_ready()
    monkeypatch.setattr(embedded, "command", lambda folder, socket: ["/does/not/exist"])
    gateway._process.kill()
    until(lambda: not gateway.alive)


def test_the_first_start_says_why_it_failed(make: Callable[..., EmbeddedGateway]) -> None:
    gateway = make("fails")
    with pytest.raises(GatewayUnavailable, match="exit status 1"):
        gateway.wait_ready()


def test_one_that_is_stopped_stays_so(make: Callable[..., EmbeddedGateway]) -> None:
    gateway = make("serves", "fails")
    gateway.wait_ready()
    gateway.stop()
    assert not gateway.alive
    assert not gateway.folder.exists()
