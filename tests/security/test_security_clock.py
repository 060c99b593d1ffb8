"""Limits of time hold although a sandbox's agent does nothing any more; its executions say why they ended."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.security.support import DEADLINE, Operator, Person, until


@pytest.fixture(scope="module")
def person(operator: Operator) -> Person:
    """Whose sandboxes they are."""
    return operator.person("clock")


@pytest.fixture
def made(person: Person) -> Iterator[list[str]]:
    """The sandboxes that a test makes."""
    boxes: list[str] = []
    yield boxes
    for box in boxes:
        person.client.delete(f"/api/v1/sandboxes/{box}")


def create(person: Person, made: list[str], **wanted: Any) -> str:
    box = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python", **wanted})["id"]
    made.append(box)
    return str(box)


def freeze(gateway: Any, box: str) -> int:
    """Stop the sandbox's agent, as no code in it can. The number of the first process of the code."""
    for claim in Path(gateway.data_dir, "sandboxes").glob("*/claim.json"):
        if json.loads(claim.read_text())["sandbox_id"] == box:
            lines = claim.with_name("first").read_text().splitlines()  # the code's, then its agent's
            os.kill(int(lines[-1].split()[0]), signal.SIGSTOP)
            return int(lines[0].split()[0])
    raise AssertionError(f"no sandbox {box}")


def lives_in(path: Path, space: str) -> bool:
    """Whether a process (a folder of /proc) is in a pid namespace, and is no corpse."""
    try:
        state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        return os.readlink(path / "ns/pid") == space and state not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    "body",
    [
        {"content": "while True: pass"},
        {"content": "while true; do :; done", "type": "command"},
    ],
    ids=["code", "command"],
)
def test_an_execution_whose_agent_is_frozen_ends_as_timeout(
    gateway: Any, person: Person, made: list[str], body: dict[str, str]
) -> None:
    box = create(person, made)
    base = f"/api/v1/sandboxes/{box}"
    with ThreadPoolExecutor(1) as pool:
        asked = {**body, "timeout": 2, "executionId": "overdue"}
        running = pool.submit(lambda: person.client.post(f"{base}/execute", json=asked, timeout=DEADLINE))
        until(
            lambda: person.client.get(f"{base}/executions/overdue").json().get("status") == "running",
            "the execution runs",
        )
        freeze(gateway, box)
        began = time.monotonic()
        answer = running.result().json()
    assert (answer["end"], answer["status"]) == ("timeout", "failed"), answer
    assert time.monotonic() - began < 2 + 5 + 8
    until(lambda: person.client.made("GET", base)["status"] == "ended", "the sandbox has ended")
    ended = person.client.made("GET", base)
    assert ended["end"] == "timeout", ended
    assert "time limit" in ended["endMessage"]


def test_an_end_does_not_wait_for_a_frozen_agent(gateway: Any, person: Person, made: list[str]) -> None:
    box = create(person, made)
    start = "subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    code = f"import subprocess\n[{start} for _ in range(20)]"
    person.client.output(box, code)
    first = freeze(gateway, box)
    space = os.readlink(f"/proc/{first}/ns/pid")
    began = time.monotonic()
    assert person.client.delete(f"/api/v1/sandboxes/{box}").status_code == 204
    assert time.monotonic() - began < 5.0
    left = [path for path in Path("/proc").glob("[0-9]*") if lives_in(path, space)]
    assert left == []
    assert person.client.made("GET", f"/api/v1/sandboxes/{box}")["end"] == "terminated"


def test_a_lifetime_ends_although_the_agent_is_frozen(gateway: Any, person: Person, made: list[str]) -> None:
    box = create(person, made, maxLifetime=600)
    base = f"/api/v1/sandboxes/{box}"
    person.client.made("PATCH", base, {"maxLifetime": 4})
    freeze(gateway, box)
    until(lambda: person.client.made("GET", base)["status"] == "ended", "the sandbox has ended")
    assert person.client.made("GET", base)["end"] == "expired"
    answer = person.client.post(f"{base}/execute", json={"content": "1"})
    assert (answer.status_code, answer.json()["error"]["details"]["end"]) == (410, "expired")
