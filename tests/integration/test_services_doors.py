"""The same act through every door: the same audit entry, count, quota and refusal."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Gateway, make_gateway

DOORS = {"rest": "/api/v1/sandboxes", "jupyter": "/api/kernels"}
ROOM = 2  # sandboxes that a user may have at once


@pytest.fixture(scope="module")
def limited() -> Iterator[Gateway]:
    folder = Path(tempfile.mkdtemp(prefix="lsp-"))
    folder.chmod(0o755)
    made = make_gateway(folder, warm_pools=[], quotas={"user": {"sandboxes": ROOM}})
    yield made
    made.end_all()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Person:
    """A user of the test's own, with one key."""

    def __init__(self, gateway: Gateway, *options: str, role: str = "developer") -> None:
        self.name = f"u-{uuid.uuid4().hex[:8]}"
        self.gateway = gateway
        self.client = httpx.Client(**_connection(gateway, gateway.key(self.name, role, "default", *options)))
        self.id = self.client.get("/api/v1/user").json()["id"]

    def create(self, door: str, **more: Any) -> httpx.Response:
        """The answer to a create."""
        named = {"runtime": "python"} if door == "rest" else {}
        return self.client.post(DOORS[door], json=named | more)

    def delete(self, door: str, created: httpx.Response) -> httpx.Response:
        """The answer to a delete of what `created` has made."""
        return self.client.delete(f"{DOORS[door]}/{created.json()['id']}")

    def audited(self) -> list[dict[str, Any]]:
        """The audit entries of this person, oldest first."""
        path = f"/api/v1/audit?userId={self.id}&limit=1000"
        with httpx.Client(**_connection(self.gateway, self.gateway.admin_key or "")) as admin:
            return list(reversed(admin.get(path).raise_for_status().json()["items"]))


def _connection(gateway: Gateway, key: str) -> dict[str, Any]:
    return {"base_url": gateway.url, "headers": {"Authorization": f"Bearer {key}"}, "timeout": 120}


def _sandbox(door: str, created: httpx.Response) -> str:
    assert created.status_code == 201, created.text
    body = created.json()
    return str(body["id"] if door == "rest" else body["sandbox"]["id"])


def _count(gateway: Gateway, name: str, labels: str = "") -> float:
    text = httpx.get(f"{gateway.url}/metrics", timeout=60).text
    found = re.search(rf"^llmsafespace_{name}_total{{{re.escape(labels)}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _acts(gateway: Gateway, action: str, door: str, outcome: str) -> float:
    return _count(gateway, "acts", f'action="{action}",door="{door}",outcome="{outcome}"')


def test_create_and_delete(limited: Gateway, door: str) -> None:
    ada = Person(limited)
    starts = _count(limited, "sandbox_starts", 'kind="cold"')
    acts = _acts(limited, "sandbox.create", door, "ok")
    made = ada.create(door)
    sandbox = _sandbox(door, made)
    assert ada.delete(door, made).status_code == 204
    shown = [(row["action"], row["target"], row["outcome"], row["details"]) for row in ada.audited()]
    runtime = shown[0][3].pop("runtime")
    assert runtime.startswith("python")
    assert shown == [
        ("sandbox.create", sandbox, "ok", {"door": door, "start": "cold"}),
        ("sandbox.delete", sandbox, "ok", {"door": door}),
    ]
    assert _count(limited, "sandbox_starts", 'kind="cold"') == starts + 1
    assert _acts(limited, "sandbox.create", door, "ok") == acts + 1


def test_a_create_that_fails(limited: Gateway, door: str) -> None:
    ada = Person(limited)
    pool = {"warmPool": "nowhere"} if door == "rest" else {"warm_pool": "nowhere"}
    answer = ada.create(door, **pool)
    code = answer.json()["error"]["code"]
    (row,) = ada.audited()
    assert (row["action"], row["target"], row["outcome"]) == ("sandbox.create", "", code)
    assert row["details"] == {"door": door, "runtime": "python"}
    assert ada.client.get("/api/v1/user").json()["usage"]["sandboxes"] == 0


def test_a_create_without_the_scope(limited: Gateway, door: str) -> None:
    ada = Person(limited, role="viewer")
    answer = ada.create(door)
    assert (answer.status_code, answer.json()["error"]["details"]) == (403, {"scope": "sandboxes:write"})
    (row,) = ada.audited()
    assert (row["action"], row["target"], row["outcome"]) == ("sandbox.create", "", "forbidden")
    assert row["details"] == {"door": door}


def test_a_create_over_the_quota(limited: Gateway, door: str) -> None:
    ada = Person(limited)
    made = [ada.create(door) for _ in range(ROOM)]
    over = ada.create(door)
    assert (over.status_code, over.json()["error"]["code"]) == (429, "quota_exceeded")
    for each in made:
        assert ada.delete(door, each).status_code == 204
    refused = [row for row in ada.audited() if row["outcome"] != "ok"]
    (row,) = refused
    assert (row["action"], row["target"], row["outcome"]) == ("sandbox.create", "", "quota_exceeded")
    assert row["details"] == {"door": door, "runtime": "python"}


async def test_a_repeated_create_takes_room_once(limited: Gateway, door: str) -> None:
    """While the first is under way, too: of three at once, two would be over the quota."""
    ada = Person(limited)
    first = ada.create(door)  # so that there is room for one more
    kernel_id = str(uuid.uuid4())
    body = {"runtime": "python"} if door == "rest" else {"kernel_id": kernel_id}
    headers = {"Idempotency-Key": kernel_id} if door == "rest" else {}
    key = ada.client.headers["Authorization"].removeprefix("Bearer ")
    async with httpx.AsyncClient(**_connection(limited, key)) as client:
        asked = (client.post(DOORS[door], json=body, headers=headers) for _ in range(3))
        answers = await asyncio.gather(*asked)
    (sandbox,) = {_sandbox(door, answer) for answer in answers}
    created = [row["target"] for row in ada.audited() if row["action"] == "sandbox.create"]
    assert created == [_sandbox(door, first), sandbox]
    for each in (first, answers[0]):
        assert ada.delete(door, each).status_code == 204
    assert ada.client.get("/api/v1/user").json()["usage"]["sandboxes"] == 0


def test_a_delete_by_a_guest(limited: Gateway, door: str) -> None:
    ada, guest = Person(limited), Person(limited)
    made = ada.create(door)
    sandbox = _sandbox(door, made)
    grant = {"sandboxId": sandbox, "userId": guest.id, "level": "developer"}
    assert ada.client.post("/api/v1/grants", json=grant).status_code == 201
    assert guest.delete(door, made).status_code == 403
    (row,) = guest.audited()
    assert (row["action"], row["target"], row["outcome"]) == ("sandbox.delete", sandbox, "forbidden")
    assert row["details"] == {"door": door}
    assert ada.delete(door, made).status_code == 204


ACTS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "file.write": ("PUT", "/files/a.txt", None),
    "file.move": ("POST", "/files/a.txt/move", {"target": "/workspace/b.txt"}),
    "file.delete": ("DELETE", "/files/b.txt", None),
    "context.create": ("POST", "/contexts", {"id": "11111111-2222-4333-8444-555555555555"}),
    "context.restart": ("POST", "/contexts/11111111-2222-4333-8444-555555555555/restart", None),
    "context.delete": ("DELETE", "/contexts/11111111-2222-4333-8444-555555555555", None),
}


def test_what_is_done_in_a_sandbox(limited: Gateway) -> None:
    """Each act is one entry and one count, done or refused; a refusal is named as the act is."""
    ada, guest = Person(limited), Person(limited, role="viewer")
    made = ada.create("rest")
    sandbox = _sandbox("rest", made)
    ada.client.post(
        "/api/v1/grants", json={"sandboxId": sandbox, "userId": guest.id, "level": "viewer"}
    ).raise_for_status()
    for who, outcome in ((guest, "forbidden"), (ada, "ok")):
        before = {action: _acts(limited, action, "rest", outcome) for action in ACTS}
        for method, path, body in ACTS.values():
            answer = who.client.request(method, f"/api/v1/sandboxes/{sandbox}{path}", json=body)
            assert answer.is_success == (outcome == "ok"), answer.text
        rows = [row for row in who.audited() if row["action"] in ACTS]
        assert [row["action"] for row in rows] == list(ACTS)
        assert {(row["target"], row["outcome"], row["details"]["door"]) for row in rows} == {
            (sandbox, outcome, "rest")
        }
        assert all(_acts(limited, action, "rest", outcome) == before[action] + 1 for action in ACTS)
    assert ada.delete("rest", made).status_code == 204
