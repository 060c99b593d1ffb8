"""What the security tests share: clients of many addresses, keys that do not work, and a populated tenant."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

LIMIT = 20.0  # seconds that any request may take
DEADLINE = 60.0
_addresses = (f"127.{a}.{b}.{c}" for a in range(10, 200) for b in range(256) for c in range(1, 255))


def address() -> str:
    """A loopback address that no request came from before.

    An address that presents many bad keys is slowed down, which would hide the answers that tests want.
    """
    return next(_addresses)


def address_for(url: str) -> str | None:
    """The address to come from: a new one where the gateway listens on loopback, else the machine's own."""
    host = httpx.URL(url).host
    return address() if host == "localhost" or host.startswith("127.") else None


class Patient(httpx.HTTPTransport):
    """Waits as long as a 429 asks for: a gateway that was not started for tests limits their rate."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        until = time.monotonic() + DEADLINE
        while True:
            answer = super().handle_request(request)
            if answer.status_code != 429 or time.monotonic() > until:
                return answer
            answer.read()
            answer.close()
            if answer.json().get("error", {}).get("code") != "rate_limited":  # a quota does not pass
                return httpx.Response(429, headers=answer.headers, content=answer.content)
            time.sleep(min(5.0, float(answer.headers.get("Retry-After", "1"))))


class Client(httpx.Client):
    """A client of the gateway with one key; paths are whole (`/api/v1/…`, `/api/…`)."""

    def __init__(self, url: str, key: str | None = None, *, scheme: str = "Bearer") -> None:
        headers = {"Authorization": f"{scheme} {key}"} if key is not None else {}
        transport = Patient(local_address=address_for(url))
        super().__init__(base_url=url, headers=headers, timeout=LIMIT, transport=transport)

    def made(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The answer of a request that has to work."""
        answer = self.request(method, path, json=body) if body is not None else self.request(method, path)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def run(self, sandbox: str, code: str, **more: Any) -> dict[str, Any]:
        """The answer of an execution, whatever its end."""
        answer = self.post(
            f"/api/v1/sandboxes/{sandbox}/execute", json={"content": code, **more}, timeout=DEADLINE
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def output(self, sandbox: str, code: str, **more: Any) -> str:
        """What code prints that has to end well."""
        answer = self.run(sandbox, code, **more)
        assert answer["end"] == "ok", answer
        return str(answer["stdout"])


class Strangers:
    """Requests with keys that are not valid, a few from each address."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked = itertools.count()
        self._client: Client | None = None

    def request(self, method: str, path: str, key: str | None, **more: Any) -> httpx.Response:
        """One request with that key (None: without any)."""
        if next(self._asked) % 10 == 0:
            self.close()
            self._client = Client(self._url)
        assert self._client is not None
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return self._client.request(method, path, headers=headers, **more)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()


def in_rest_shape(answer: httpx.Response, status: int | None = None, code: str | None = None) -> None:
    """`answer` is an error of /api/v1: `{error: {code, message, details}}`."""
    said = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
    if status is not None:
        assert answer.status_code == status, said
    if answer.request.method == "HEAD":
        return
    assert answer.headers["content-type"] == "application/json", said
    body = answer.json()
    assert set(body) == {"error"}, said
    assert set(body["error"]) == {"code", "message", "details"}, said
    assert body["error"]["message"], said
    if code is not None:
        assert body["error"]["code"] == code, said


def in_jupyter_shape(answer: httpx.Response, status: int | None = None, code: str | None = None) -> None:
    """`answer` is an error of /api: `{message, reason, …}`."""
    said = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}"
    if status is not None:
        assert answer.status_code == status, said
    if answer.request.method == "HEAD":
        return
    assert answer.headers["content-type"] == "application/json", said
    assert isinstance(answer.json()["message"], str), said
    assert answer.json()["message"], said
    assert "reason" in answer.json(), said
    if code is not None:
        assert answer.json()["error"]["code"] == code, said


def in_shape(answer: httpx.Response, status: int | None = None, code: str | None = None) -> None:
    """`answer` is an error of the API that its path belongs to."""
    rest = answer.request.url.path.startswith("/api/v1")
    (in_rest_shape if rest else in_jupyter_shape)(answer, status, code)


def until(true: Callable[[], Any], what: str, limit: float = DEADLINE) -> Any:
    """Wait until `true()` is."""
    deadline = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < deadline, f"it did not come to be that {what}"
        time.sleep(0.02)
    return found


@dataclass
class Person:
    """A user, its key and a client with it."""

    id: str
    name: str
    key: str
    key_id: str
    client: Client


class Operator:
    """Makes users and keys in any tenant, with the admin key of the first run."""

    def __init__(self, url: str, admin_key: str) -> None:
        self.url = url
        self.admin = Client(url, admin_key)
        self._made: list[Client] = [self.admin]

    def person(self, tenant: str, role: str = "developer", name: str = "") -> Person:
        """A new user of that tenant with a key of all its role's scopes."""
        name = f"{name or role}-{uuid.uuid4().hex[:8]}"
        user = self.admin.made("POST", "/api/v1/users", {"name": name, "role": role, "tenant": tenant})
        key = self.key(user["id"])
        return Person(user["id"], name, key["key"], key["id"], self.client(key["key"]))

    def key(self, user_id: str, **wanted: Any) -> dict[str, Any]:
        """A key of a user: `scopes`, `expiresIn`."""
        return self.admin.made("POST", f"/api/v1/users/{user_id}/apikeys", wanted)

    def client(self, key: str) -> Client:
        """A client with a key."""
        self._made.append(Client(self.url, key))
        return self._made[-1]

    def revoked_key(self, user_id: str) -> str:
        """A key that was good and is revoked."""
        made = self.key(user_id)
        with Client(self.url, made["key"]) as once:
            assert once.get("/api/v1/user").status_code == 200
            assert self.admin.delete(f"/api/v1/user/apikeys/{made['id']}").status_code == 204
        return str(made["key"])

    def expired_key(self, user_id: str) -> str:
        """A key that was good and has expired."""
        made = self.key(user_id, expiresIn=1)
        with Client(self.url, made["key"]) as once:
            assert once.get("/api/v1/user").status_code == 200
        strangers = Strangers(self.url)
        try:
            until(
                lambda: strangers.request("GET", "/api/v1/user", made["key"]).status_code == 401,
                "a key expires",
            )
        finally:
            strangers.close()
        return str(made["key"])

    def close(self) -> None:
        """Close every client."""
        for client in self._made:
            client.close()


@dataclass
class Tenant:
    """One tenant's people and what its owner has: the thing that others must not get at."""

    name: str
    owner: Person
    values: dict[str, str] = field(default_factory=dict)

    @property
    def sandbox(self) -> str:
        """The owner's sandbox."""
        return self.values["sandbox_id"]

    @property
    def kernel(self) -> str:
        """Its default kernel."""
        return self.values["kernel_id"]


SECRET = "tenant-secret-7f3a"  # in the names and contents of everything that the owner has


def populate(operator: Operator, name: str, guest: Person) -> Iterator[Tenant]:
    """A tenant whose owner has one of everything that a route can name; it is gone afterwards."""
    tenant = Tenant(name, operator.person(name, name="owner"))
    mine = tenant.owner.client
    body = {"runtime": "python", "env": {"SECRET": SECRET}, "files": {"secret.txt": SECRET}}
    box = mine.made("POST", "/api/v1/sandboxes", body | {"metadata": {"secret": SECRET}})
    base = f"/api/v1/sandboxes/{box['id']}"
    execution = mine.run(box["id"], f"print({SECRET!r})\nkept = {SECRET!r}")
    context = mine.made("POST", f"{base}/contexts", {"name": "second"})
    command = mine.made("POST", f"{base}/commands", {"command": f"echo {SECRET}; cat", "keepStdin": True,
                                                     "background": True})  # fmt: skip
    session = mine.made(
        "POST",
        "/api/sessions",
        {"path": f"{SECRET}.ipynb", "type": "notebook", "name": SECRET, "kernel": {"id": box["kernelId"]}},
    )
    grant = mine.made("POST", "/api/v1/grants", {"sandboxId": box["id"], "userId": guest.id})
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    mine.made("POST", "/api/v1/warmpools", {"name": pool, "runtime": "python", "minSize": 0, "maxSize": 1})
    tenant.values = {
        "sandbox_id": box["id"],
        "kernel_id": box["kernelId"],
        "execution_id": execution["executionId"],
        "context_id": context["id"],
        "command_id": command["id"],
        "path": "secret.txt",
        "session_id": session["id"],
        "grant_id": grant["id"],
        "key_id": tenant.owner.key_id,
        "user_id": tenant.owner.id,
        "name": pool,
    }
    yield tenant
    mine.delete(f"/api/v1/warmpools/{pool}")
    mine.delete(base)
