"""Whatever is open ends within a second of the loss of the right that it rests on."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.security.conftest import World
from tests.security.support import DEADLINE, LIMIT, Client, Operator, Person

WITHIN = 1.0
SLACK = 1.5  # for a busy machine, and the time that a request takes to be seen


@pytest.fixture
def running(world: World) -> Iterator[str]:
    """A command that prints now and then until it is killed."""
    base = f"/api/v1/sandboxes/{world.tenant.sandbox}"
    body = {"command": "while sleep 0.05; do echo tick; done", "background": True}
    made = world.tenant.owner.client.made("POST", f"{base}/commands", body)
    yield made["id"]
    world.tenant.owner.client.delete(f"{base}/commands/{made['id']}")


class Open:
    """A request of a guest's that goes on; `begun` once it is under way, `over` once it has ended."""

    def __init__(self, url: str, person: Person, path: str) -> None:
        self.url, self.person, self.path = url, person, path
        self.begun, self.over = threading.Event(), threading.Event()
        self.status: int | None = None
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self.run()
        except (httpx.TransportError, OSError):
            pass  # cut off
        finally:
            self.ended_at = time.monotonic()
            self.over.set()

    def run(self) -> None:
        raise NotImplementedError


class Events(Open):
    """A stream of events."""

    accept = "application/x-ndjson"

    def run(self) -> None:
        with (
            Client(self.url, self.person.key) as client,
            client.stream("GET", self.path, headers={"Accept": self.accept}) as answer,
        ):
            for _ in answer.iter_lines():
                self.begun.set()


class ServerSent(Events):
    accept = "text/event-stream"


class Executing(Open):
    """Code that runs until it is over; begun once the sandbox knows of it."""

    def run(self) -> None:
        execution = f"rights-{os.urandom(8).hex()}"
        looking = threading.Thread(target=self._look, args=(execution,), daemon=True)
        looking.start()
        with Client(self.url, self.person.key) as client:
            body = {"content": "import time; time.sleep(30)", "executionId": execution}
            self.status = client.post(self.path, json=body, timeout=DEADLINE).status_code

    def _look(self, execution: str) -> None:
        path = f"{self.path.removesuffix('execute')}executions/{execution}"
        with Client(self.url, self.person.key) as client:
            while not self.begun.is_set() and not self.over.is_set():
                if client.get(path).status_code == 200:
                    self.begun.set()
                time.sleep(0.02)


class Raw(Open):
    """A request over a socket of our own, which may stop in the middle."""

    def head(self, line: str, *headers: str) -> socket.socket:
        where = urlsplit(self.url)
        made = socket.create_connection((where.hostname, where.port), timeout=LIMIT)
        lines = (f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {self.person.key}", *headers)
        made.sendall("\r\n".join((*lines, "", "")).encode())
        return made


class Waiting(Raw):
    """A request that waits for its answer; begun once the gateway says that it has read the head."""

    def run(self) -> None:
        line = f"GET {self.path}?wait=true"
        with self.head(line, "Expect: 100-continue", "Connection: close") as connection:
            connection.settimeout(DEADLINE)
            answer = connection.makefile("rb")
            status = answer.readline().split()
            if status[1:2] == [b"100"]:
                answer.readline()
                self.begun.set()
                status = answer.readline().split()
            self.status = int(status[1]) if status else None


class Upload(Raw):
    """A file that is sent a little at a time."""

    def run(self) -> None:
        with self.head(f"PUT {self.path}", "Content-Length: 100000000") as connection:
            while True:
                connection.sendall(b"x" * 1000)
                self.begun.set()
                time.sleep(0.05)


class Download(Raw):
    """A file that is too large to fit on the way, read a little at a time."""

    def run(self) -> None:
        with self.head(f"GET {self.path}") as connection:
            while connection.recv(64 * 1024):  # what is on the way already takes a moment
                self.begun.set()
                time.sleep(0.01)


LARGE = 64 * 1024 * 1024
THINGS: dict[str, tuple[type[Open], str]] = {
    "ndjson": (Events, "commands/{command}/events"),
    "sse": (ServerSent, "commands/{command}/events"),
    "wait": (Waiting, "commands/{command}"),
    "execute": (Executing, "execute"),
    "upload": (Upload, "files/half.bin"),
    "download": (Download, "files/large.bin"),
}


@pytest.fixture(scope="module")
def large(world: World) -> None:
    code = f"open('/workspace/large.bin', 'wb').truncate({LARGE})"
    world.tenant.owner.client.output(world.tenant.sandbox, code)


def _grant(world: World, person: Person, level: str) -> dict[str, Any]:
    body = {"sandboxId": world.tenant.sandbox, "userId": person.id, "level": level}
    return world.tenant.owner.client.made("POST", "/api/v1/grants", body)


def _losses(world: World, operator: Operator) -> dict[str, Callable[[Person, str], Any]]:
    owner, admin = world.tenant.owner.client, operator.admin
    return {
        "grant deleted": lambda person, grant: owner.delete(f"/api/v1/grants/{grant}"),
        "grant lowered": lambda person, grant: _grant(world, person, "viewer"),
        "role lowered": lambda person, grant: admin.patch(
            f"/api/v1/users/{person.id}", json={"role": "viewer"}
        ),
        "key revoked": lambda person, grant: admin.delete(f"/api/v1/user/apikeys/{person.key_id}"),
    }


@pytest.mark.parametrize("loss", ["grant deleted", "grant lowered", "role lowered", "key revoked"])
def test_everything_ends_with_its_right(
    world: World, operator: Operator, running: str, large: None, gateway: Any, loss: str
) -> None:
    """All of them at once, each of a person of its own; the owner's own stream goes on."""
    base = f"/api/v1/sandboxes/{world.tenant.sandbox}"
    lose = _losses(world, operator)[loss]
    own = Events(gateway.url, world.tenant.owner, f"{base}/commands/{running}/events")
    opened: dict[str, tuple[Open, Person, str]] = {}
    for name, (kind, path) in THINGS.items():
        person = operator.person(world.tenant.name, "developer", "partner")
        grant = _grant(world, person, "developer")["id"]
        opened[name] = (
            kind(gateway.url, person, f"{base}/{path.format(command=running)}"),
            person,
            grant,
        )
    for name, (thing, _, _) in opened.items():
        assert thing.begun.wait(LIMIT), name
        assert not thing.over.is_set(), name
    for name, (thing, person, grant) in opened.items():
        lost_at = time.monotonic()
        lose(person, grant)
        assert thing.over.wait(LIMIT), name
        assert thing.ended_at - lost_at < WITHIN + SLACK, name
        assert thing.status in (None, 401, 403, 404), (name, thing.status)
    assert not own.over.is_set()
    world.tenant.owner.client.post(f"/api/kernels/{world.tenant.kernel}/interrupt")
