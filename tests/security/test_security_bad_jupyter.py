"""Bad input to every Jupyter route: a 4xx in Jupyter's shape; never a 5xx, and nothing broken by it."""

from __future__ import annotations

import uuid
from typing import Any

from tests.security.nonsense import NO_JSON, NO_OBJECT, WRONG_IDS, refused
from tests.security.support import Tenant, in_shape

# Jupyter servers look at the fields that they know, and at no others.
FOR_JUPYTER = [body for body in NO_JSON + NO_OBJECT if b"\xed" not in body]
NAMES: list[Any] = ["", "cobol", "../python3", "x" * 5000, "\0", 1, None, [], {}]
ENVS: list[Any] = [[], "x", 1, {"A": {}}, {"A=B": "x"}, {"": "x"}, {"A": "\0"}, {"A": "x" * 200_000}]
PATHS: list[Any] = [1, [], "\0", "x" * 5000]
KINDS: list[Any] = [1, None, "\0", []]
KERNELS: list[Any] = [1, [], {"id": "x"}, {"id": 1}, {"name": "cobol"}]
KERNEL_IDS: list[Any] = ["", "x", 1, [], "../..", str(uuid.uuid4()) + "\n"]
WRONG_KERNELS = [
    *({"name": name} for name in NAMES),
    *({"env": env} for env in ENVS),
    *({"path": path} for path in PATHS),
    *({"kernel_id": kernel} for kernel in KERNEL_IDS),
]
WRONG_SESSIONS: list[dict[str, Any]] = [
    {},
    {"path": "a"},
    {"type": "notebook"},
    *({"path": path, "type": "notebook"} for path in (*PATHS, None)),
    *({"path": "a", "type": kind} for kind in KINDS),
    *({"path": "a", "type": "notebook", "kernel": kernel} for kernel in KERNELS),
    {"path": "a", "type": "notebook", "kernel": {"id": str(uuid.uuid4())}},
    {"path": "a", "type": "notebook", "name": 1},
]


def test_bad_kernel_wishes(harassed: Tenant) -> None:
    client = harassed.owner.client
    for body in FOR_JUPYTER:
        refused(client, "POST", "/api/kernels", content=body)
    for wish in WRONG_KERNELS:
        answer = client.post("/api/kernels", json=wish)
        if answer.is_success:  # None and the empty name mean the default kernel
            client.delete(f"/api/kernels/{answer.json()['id']}")
            assert wish in ({"name": ""}, {"name": None}), wish
        else:
            assert 400 <= answer.status_code < 500, (wish, answer.text)
            in_shape(answer)
    refused(client, "POST", "/api/kernels", content=b'{"path": "' + b"x" * 2**21 + b'"}')


def test_bad_session_wishes(harassed: Tenant) -> None:
    client = harassed.owner.client
    mine = f"/api/sessions/{harassed.values['session_id']}"
    for body in FOR_JUPYTER:
        refused(client, "POST", "/api/sessions", content=body)
        refused(client, "PATCH", mine, content=body)
    for wish in WRONG_SESSIONS:
        refused(client, "POST", "/api/sessions", json=wish)
    for wish in ({"kernel": {"id": "x"}}, {"kernel": {"name": "cobol"}}, {"name": 1}, {"path": "\0"}):
        refused(client, "PATCH", mine, json=wish)
    assert client.made("GET", mine)["kernel"]["id"] == harassed.kernel


def test_wrong_jupyter_ids_and_queries(harassed: Tenant) -> None:
    client = harassed.owner.client
    never = str(uuid.uuid4())
    for wrong in (*WRONG_IDS, never, never.upper(), "a-a-a-a-a"):
        for method, path in (
            *((method, f"/api/kernels/{wrong}") for method in ("GET", "DELETE")),
            *((method, f"/api/sessions/{wrong}") for method in ("GET", "PATCH", "DELETE")),
            *(("POST", f"/api/kernels/{wrong}/{action}") for action in ("interrupt", "restart", "nothing")),
            *(("GET", path) for path in (f"/api/kernelspecs/{wrong}", f"/kernelspecs/python3/{wrong}")),
        ):
            answer = client.request(method, path, json={"name": "x"} if method == "PATCH" else None)
            assert 400 <= answer.status_code < 500, (
                f"{method} {path}: {answer.status_code} {answer.text[:200]}"
            )
    for query in ("session_id=" + "x" * 300, "after=x", "after=-1", "after=" + "9" * 40):
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        refused(client, "GET", f"/api/kernels/{harassed.kernel}/channels?{query}", headers=headers)
    for asked in ("x", "[]", "1", '{"a": 1}', "%ff"):
        refused(client, "GET", f"/api/me?permissions={asked}")
