"""Sandboxes over REST: create, look, change, end, and who may."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_gateway
from tests.integration.rest_support import Client, is_error


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-sandboxes")) as made:
        yield made


def test_a_create_says_line_by_line_what_it_waits_for(client: Client) -> None:
    headers = {"Accept": "application/x-ndjson"}
    wanted = {"runtime": "python", "useWarmPool": False}
    with client.stream("POST", "/sandboxes", json=wanted, headers=headers) as answer:
        assert answer.status_code == 200
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert lines[0]["progress"]["reason"] == "Cold"
    assert "asked for no warm pool" in lines[0]["progress"]["message"]
    sandbox = lines[-1]["sandbox"]
    assert client.execute(sandbox["id"], "print(6 * 7)")["stdout"] == "42\n"
    client.delete(f"/sandboxes/{sandbox['id']}")
    # What fails before anything is waited for has a status of its own.
    is_error(client.post("/sandboxes", json={"runtime": "cobol"}, headers=headers), 422)
    is_error(client.post("/sandboxes", json={"runtime": 3}, headers=headers), 400)


def test_a_sandbox_from_its_beginning_to_its_end(client: Client) -> None:
    wanted = {
        "runtime": "python",
        "env": {"GREETING": "hello"},
        "files": {"a.txt": "text", "b.bin": {"content": "AAH/", "encoding": "base64"}},
        "metadata": {"purpose": "test"},
        "timeout": 20,
        "resources": {"cpu": "500m", "memory": "512Mi"},
    }
    answer = client.post("/sandboxes", json=wanted)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/v1/sandboxes/{made['id']}"
    assert made["id"].startswith("sb-")
    assert made["status"] == "running"
    assert made["start"]["kind"] in ("warm", "cold")
    assert made["start"]["kind"] == "warm" or made["start"]["reason"]
    assert made["endpoints"]["execute"] == f"/api/v1/sandboxes/{made['id']}/execute"
    assert made["resources"] == {"cpu": "500m", "memory": "512Mi", "ephemeralStorage": "1Gi"}

    code = "import os; print(os.environ['GREETING'], open('a.txt').read(), list(open('b.bin', 'rb').read()))"
    assert client.execute(made["id"], code)["stdout"] == "hello text [0, 1, 255]\n"

    assert client.get(f"/sandboxes/{made['id']}").json() == made
    assert made["id"] in [row["id"] for row in client.get("/sandboxes?status=running").json()["items"]]

    patched = client.patch(
        f"/sandboxes/{made['id']}", json={"metadata": {"a": "b"}, "timeout": 7, "idleTimeout": None}
    )
    assert patched.status_code == 200, patched.text
    assert patched.json()["metadata"] == {"a": "b"}
    assert (patched.json()["timeout"], patched.json()["idleTimeout"]) == (7, None)
    assert client.get(f"/sandboxes/{made['id']}").json() == patched.json()

    status = client.get(f"/sandboxes/{made['id']}/status").json()
    assert status["status"] == "running"
    assert status["resources"]["memoryBytes"] > 0
    assert [context["isDefault"] for context in status["contexts"]] == [True]
    assert status["contexts"][0]["id"] == made["kernelId"]

    assert client.delete(f"/sandboxes/{made['id']}").status_code == 204
    assert client.delete(f"/sandboxes/{made['id']}").status_code == 204
    ended = client.get(f"/sandboxes/{made['id']}").json()
    assert (ended["status"], ended["end"]) == ("ended", "terminated")
    assert client.get(f"/sandboxes/{made['id']}/status").json()["status"] == "ended"
    for answer in (
        client.post(f"/sandboxes/{made['id']}/execute", json={"content": "1"}),
        client.get(f"/sandboxes/{made['id']}/executions"),
        client.get(f"/sandboxes/{made['id']}/files"),
        client.patch(f"/sandboxes/{made['id']}", json={"timeout": 1}),
    ):
        assert is_error(answer, 410, "gone")["details"]["end"] == "terminated"


def test_the_same_idempotency_key_is_one_sandbox(client: Client) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"runtime": "python", "env": {"A": "1"}}

    def create(_: int) -> tuple[int, str]:
        answer = client.post("/sandboxes", json=body, headers=headers)
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(create, range(4)))
    assert len(made) == 1
    ((status, sandbox),) = made
    assert status == 201
    try:
        other = client.post("/sandboxes", json={**body, "env": {"A": "2"}}, headers=headers)
        is_error(other, 409, "conflict")
    finally:
        client.delete(f"/sandboxes/{sandbox}")


def test_pages(client: Client) -> None:
    with client.sandbox() as first, client.sandbox() as second:
        page = client.get("/sandboxes", params={"limit": 1, "status": "running"}).json()
        assert [row["id"] for row in page["items"]] == [second]
        rest = client.get("/sandboxes", params={"after": page["next"], "status": "running"}).json()
        assert first in [row["id"] for row in rest["items"]]
        assert second not in [row["id"] for row in rest["items"]]
    is_error(client.get("/sandboxes", params={"after": "nonsense"}), 400)


def test_who_may(gateway: Any, client: Client) -> None:
    viewer = Client(gateway.url, gateway.key("rest-viewer", "viewer"))
    colleague = Client(gateway.url, gateway.key("rest-colleague"))
    stranger = Client(gateway.url, gateway.key("rest-stranger", "admin", "rest-elsewhere"))
    nobody = Client(gateway.url, None)
    with client.sandbox() as sandbox:
        for path in ("", "/status", "/executions", "/files", "/contexts", "/commands"):
            is_error(nobody.get(f"/sandboxes/{sandbox}{path}"), 401, "unauthorized")
            is_error(stranger.get(f"/sandboxes/{sandbox}{path}"), 404, "not_found")
            is_error(colleague.get(f"/sandboxes/{sandbox}{path}"), 404, "not_found")
        is_error(viewer.post("/sandboxes", json={"runtime": "python"}), 403, "forbidden")
        is_error(viewer.post(f"/sandboxes/{sandbox}/execute", json={"content": "1"}), 403, "forbidden")
        is_error(client.get("/users"), 403, "forbidden")
        is_error(client.get("/audit"), 403, "forbidden")
        assert sandbox not in [row["id"] for row in colleague.get("/sandboxes").json()["items"]]

        user = colleague.get("/user").json()["id"]
        grant = client.post("/grants", json={"sandboxId": sandbox, "userId": user, "level": "viewer"})
        assert grant.status_code == 201, grant.text
        assert colleague.get(f"/sandboxes/{sandbox}").status_code == 200
        is_error(colleague.post(f"/sandboxes/{sandbox}/execute", json={"content": "1"}), 403, "forbidden")
        is_error(colleague.delete(f"/sandboxes/{sandbox}"), 403, "forbidden")
        assert client.delete(f"/grants/{grant.json()['id']}").status_code == 204
        is_error(colleague.get(f"/sandboxes/{sandbox}"), 404, "not_found")
    for made in (viewer, colleague, stranger, nobody):
        made.close()


def test_keys_of_ones_own(gateway: Any, client: Client) -> None:
    made = client.post(
        "/user/apikeys", json={"name": "second", "scopes": ["sandboxes:read"], "expiresIn": 600}
    )
    assert made.status_code == 201, made.text
    key = made.json()
    assert key["key"].startswith("lsp_")
    listed = client.get("/user/apikeys").json()["items"]
    assert key["id"] in [row["id"] for row in listed]
    assert "key" not in listed[0]
    with Client(gateway.url, key["key"]) as second:
        assert second.get("/user").json()["scopes"] == ["sandboxes:read"]
        is_error(second.post("/user/apikeys", json={}), 403, "forbidden")
        assert client.delete(f"/user/apikeys/{key['id']}").status_code == 204
        is_error(second.get("/user"), 401, "unauthorized")
    is_error(client.post("/user/apikeys", json={"scopes": ["admin"]}), 400, "invalid_request")
    is_error(client.delete("/user/apikeys/unknown"), 404, "not_found")


def test_what_an_admin_sees(gateway: Any, client: Client) -> None:
    with Client(gateway.url, gateway.admin_key) as admin, client.sandbox() as sandbox:
        assert sandbox in [row["id"] for row in admin.get("/sandboxes").json()["items"]]
        name = f"user-{uuid.uuid4().hex[:8]}"
        user = admin.post("/users", json={"name": name, "role": "viewer"})
        assert user.status_code == 201, user.text
        is_error(admin.post("/users", json={"name": name}), 409, "conflict")
        changed = admin.patch(f"/users/{user.json()['id']}", json={"role": "developer"})
        assert changed.json()["role"] == "developer"
        assert admin.post(f"/users/{user.json()['id']}/apikeys").status_code == 201
        assert len(admin.get(f"/users/{user.json()['id']}/apikeys").json()["items"]) == 1
        entries = admin.get("/audit", params={"target": sandbox}).json()["items"]
        assert "sandbox.create" in [entry["action"] for entry in entries]


def test_runtimes_and_profiles(client: Client) -> None:
    runtimes = client.get("/runtimes").json()["items"]
    assert any(runtime["id"].startswith("python:3.") for runtime in runtimes)
    one = client.get(f"/runtimes/{runtimes[0]['id']}").json()
    assert one == runtimes[0]
    is_error(client.get("/runtimes/cobol:1"), 404)
    assert [row["id"] for row in client.get("/profiles").json()["items"]] == ["standard", "high", "custom"]
    assert client.get("/profiles/high").json()["securityLevel"] == "high"
    is_error(client.get("/profiles/none"), 404)
    is_error(client.post("/sandboxes", json={"runtime": "cobol:1"}), 422, "runtime_unavailable")


def test_warm_pools(client: Client) -> None:
    name = f"pool-{uuid.uuid4().hex[:8]}"
    made = client.post("/warmpools", json={"name": name, "runtime": "python", "minSize": 0, "maxSize": 2})
    assert made.status_code == 201, made.text
    try:
        assert made.json()["resources"] == {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}
        is_error(client.post("/warmpools", json={"name": name, "runtime": "python"}), 409, "conflict")
        is_error(client.patch(f"/warmpools/{name}", json={"minSize": 3}), 400, "invalid_request")
        scaled = client.patch(f"/warmpools/{name}", json={"minSize": 1})
        assert scaled.json()["minSize"] == 1
        deadline = time.monotonic() + 60
        while client.get(f"/warmpools/{name}/status").json()["availablePods"] < 1:
            assert time.monotonic() < deadline, client.get(f"/warmpools/{name}").text
            time.sleep(0.1)
        assert name in [row["name"] for row in client.get("/warmpools").json()["items"]]
    finally:
        assert client.delete(f"/warmpools/{name}").status_code == 204
    is_error(client.get(f"/warmpools/{name}"), 404)
    shared = [row["name"] for row in client.get("/warmpools").json()["items"] if row["tenant"] is None]
    assert shared
    is_error(client.delete(f"/warmpools/{shared[0]}"), 403, "forbidden")


def test_documentation_and_health(gateway: Any) -> None:
    with Client(gateway.url, None) as anyone:
        page = anyone.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for asset in ("style.css", "script.js"):
            assert f"docs/{asset}" in page.text
            assert anyone.get(f"/docs/{asset}").status_code == 200
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert anyone.get("/openapi.json").json()["openapi"] == "3.1.0"
        for path in ("healthz", "readyz"):
            assert anyone.get(f"{gateway.url}/{path}").json() == {"status": "ok"}
        counted = anyone.get(f"{gateway.url}/metrics")
        assert "llmsafespace_http_requests_total" in counted.text
        assert "sb-" not in counted.text
        assert "lsp_" not in counted.text


def test_logs_are_json_without_secrets(gateway: Any, client: Client) -> None:
    with client.sandbox(env={"TOKEN": "very-secret-value"}) as sandbox:
        client.execute(sandbox, "print('very-secret-code')")
        answer = client.get(f"/sandboxes/{sandbox}", headers={"X-Request-Id": "my-request-1"})
        assert answer.headers["x-request-id"] == "my-request-1"
    deadline = time.monotonic() + 10
    while not any("my-request-1" in line for line in gateway.output):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    output = "".join(gateway.output)
    assert "very-secret" not in output
    assert client.headers["authorization"].split()[-1] not in output
    lines = [json.loads(line) for line in gateway.output if line.startswith("{")]
    assert any(line.get("request_id") == "my-request-1" and line["sandbox"] == sandbox for line in lines)


def test_a_repeated_request_is_answered_even_when_the_quota_is_used_up(data_root: Path) -> None:
    folder = data_root / "quota"
    folder.mkdir()
    small = make_gateway(folder, warm_pools=[], quotas={"sandboxes": 1})
    try:
        client = Client(small.url, small.admin_key)
        headers = {"Idempotency-Key": "once"}

        def create() -> Any:
            return Client(small.url, small.admin_key).post(
                "/sandboxes", json={"runtime": "python"}, headers=headers
            )

        with ThreadPoolExecutor() as pool:  # repeated while the first is still under way
            first, other = (each.result() for each in [pool.submit(create), pool.submit(create)])
        assert (first.status_code, other.status_code) == (201, 201), (first.text, other.text)
        assert first.json()["id"] == other.json()["id"]
        again = client.post("/sandboxes", json={"runtime": "python"}, headers=headers)
        assert (first.status_code, again.status_code) == (201, 201), again.text
        assert first.json()["id"] == again.json()["id"]
        is_error(client.post("/sandboxes", json={"runtime": "python"}), 429, "quota_exceeded")
    finally:
        small.end_all()
