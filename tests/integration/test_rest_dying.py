"""A sandbox that ends under somebody's hands: every call says so, with the end's own word and status."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.integration.rest_support import Client, is_error


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-dying")) as made:
        yield made


def made(client: Client) -> str:
    answer = client.post("/sandboxes", json={"runtime": "python"})
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["id"]
    return found


def running(client: Client, sandbox: str) -> None:
    """Wait until something runs."""
    until = time.monotonic() + 30
    while True:
        items = client.get(f"/sandboxes/{sandbox}/executions").json()["items"]
        if any(each["status"] == "running" for each in items):
            return
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["code", "command"])
def test_an_execution_that_delete_ends_is_aborted(client: Client, kind: str) -> None:
    sandbox = made(client)
    content = "print('begun', flush=True)\nimport time; time.sleep(60)" if kind == "code" else "sleep 60"
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(client.execute, sandbox, content, type=kind)
        time.sleep(1.0) if kind == "command" else running(client, sandbox)
        assert client.delete(f"/sandboxes/{sandbox}").status_code == 204
        answer = waiting.result(30)
    assert (answer["end"], answer["status"], answer["exitCode"] == 0) == ("aborted", "failed", False), answer
    if kind == "code":
        assert answer["stdout"] == "begun\n"


def slow_body(started: threading.Event, go_on: threading.Event) -> Iterator[bytes]:
    yield b"x" * 100_000
    started.set()
    go_on.wait(30)
    for _ in range(20):
        yield b"y" * 100_000


def test_an_upload_into_a_sandbox_that_ends_is_gone(client: Client) -> None:
    sandbox = made(client)
    started, go_on = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.put, f"/sandboxes/{sandbox}/files/big", content=slow_body(started, go_on))
        assert started.wait(30)
        assert client.delete(f"/sandboxes/{sandbox}").status_code == 204
        go_on.set()
        error = is_error(sent.result(30), 410, "gone")
    assert error["details"]["end"] == "terminated"


CALLS: dict[str, Callable[[Client, str], httpx.Response]] = {
    "list files": lambda client, box: client.get(f"/sandboxes/{box}/files"),
    "write": lambda client, box: client.put(f"/sandboxes/{box}/files/a", content=b"1"),
    "read": lambda client, box: client.get(f"/sandboxes/{box}/files/a"),
    "context": lambda client, box: client.post(f"/sandboxes/{box}/contexts", json={}),
    "contexts": lambda client, box: client.get(f"/sandboxes/{box}/contexts"),
    "command": lambda client, box: client.post(f"/sandboxes/{box}/commands", json={"command": "true"}),
    "packages": lambda client, box: client.post(f"/sandboxes/{box}/packages", json={"packages": ["x"]}),
    "execute": lambda client, box: client.post(f"/sandboxes/{box}/execute", json={"content": "1"}),
    "executions": lambda client, box: client.get(f"/sandboxes/{box}/executions"),
    "limits": lambda client, box: client.patch(f"/sandboxes/{box}", json={"timeout": 5}),
}


def test_every_call_to_a_sandbox_that_ends_is_answered_or_gone(gateway: Any, client: Client) -> None:
    """Calls of every kind go on while it is ended: each is served or told the end, none is told to retry."""
    key = gateway.key("rest-dying-storm")
    with Client(gateway.url, key) as owner:
        sandbox = made(owner)
        over = threading.Event()
        found: list[str] = []

        def storm(name: str) -> None:
            with Client(gateway.url, key) as mine:
                last: httpx.Response | None = None
                while not over.is_set() or last is None:
                    last = CALLS[name](mine, sandbox)
                    if last.status_code >= 500:
                        found.append(f"{name}: {last.status_code} {last.text[:200]}")
                    elif last.status_code == 410 and is_error(last)["details"].get("end") != "terminated":
                        found.append(f"{name}: {last.text[:200]}")
                last = CALLS[name](mine, sandbox)
                if last.status_code != 410:
                    found.append(f"{name} afterwards: {last.status_code} {last.text[:200]}")

        with ThreadPoolExecutor(len(CALLS)) as pool:
            storms = [pool.submit(storm, name) for name in CALLS]
            time.sleep(0.5)
            assert owner.delete(f"/sandboxes/{sandbox}").status_code == 204
            over.set()
            for each in storms:
                each.result(60)
        assert found == [], "\n".join(line for line in gateway.output if "Traceback" in line)[-4000:]
