"""The gateway dies at once: whatever ran goes on, and is answered by the next gateway."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.security.support import Operator, Person, until


@pytest.fixture
def person(operator: Operator) -> Person:
    """Whose sandbox it is."""
    return operator.person("faults")


def test_variables_and_files_survive(deployment: Any, person: Person) -> None:
    """A sandbox does not notice that its gateway was killed."""
    box = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    person.client.output(box, "kept = 42; open('kept', 'w').write('file')")
    deployment.kill()
    deployment.start()
    assert person.client.output(box, "print(kept, open('kept').read())") == "42 file\n"
    assert person.client.delete(f"/api/v1/sandboxes/{box}").status_code == 204


def test_what_ran_is_there_in_whole_afterwards(deployment: Any, person: Person) -> None:
    """An execution that was cut off with its request ends by itself and keeps all of its output."""
    client = person.client
    box = client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    base = f"/api/v1/sandboxes/{box}"
    code = "import os, time\nprint('begun', flush=True)\n"
    code += "while not os.path.exists('go'): time.sleep(0.02)\nprint('ended')"

    outcome: list[object] = []

    def ask() -> None:
        try:
            body = {"content": code, "timeout": 300}
            outcome.append(client.post(f"{base}/execute", json=body, timeout=120))
        except httpx.TransportError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    (run,) = until(lambda: client.made("GET", f"{base}/executions")["items"], "the execution runs")
    deployment.kill()
    asking.join(30)
    assert not asking.is_alive()
    (broke,) = outcome
    assert isinstance(broke, httpx.TransportError)
    deployment.start()
    client.put(f"{base}/files/go", content=b"")
    path = f"{base}/executions/{run['executionId']}"
    ended = until(
        lambda: (found := client.made("GET", path)).get("end") and found, "the execution ends by itself"
    )
    assert ended["end"] == "ok"
    assert ended["stdout"] == "begun\nended\n"
    assert client.delete(base).status_code == 204


def test_executions_of_a_killed_gateway_are_audited(
    deployment: Any, person: Person, operator: Operator
) -> None:
    """Killed at once after it answered: each has one entry afterwards, written before or not."""
    client, admin = person.client, operator.person("faults", "admin").client
    box = client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    base = f"/api/v1/sandboxes/{box}"
    code, command = [f"{box}-{number}" for number in range(3)], f"{box}-command"
    for execution in code:
        client.made("POST", f"{base}/execute", {"content": "1", "executionId": execution})
    client.made("POST", f"{base}/execute", {"content": "true", "type": "command", "executionId": command})
    deployment.kill()
    deployment.start()

    def audited() -> dict[str, Any]:
        rows = admin.made("GET", f"/api/v1/audit?target={box}&limit=1000")["items"]
        found = [(row["details"]["execution"], row) for row in rows if "execution" in row["details"]]
        assert len(found) == len(dict(found))
        return dict(found)

    wanted = {*code, command}
    until(lambda: audited().keys() == wanted, "all are audited")
    assert {row["outcome"] for row in audited().values()} == {"ok"}
    assert {audited()[execution]["userId"] for execution in code} == {person.id}
    assert client.delete(base).status_code == 204
