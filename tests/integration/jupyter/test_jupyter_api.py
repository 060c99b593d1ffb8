"""The HTTP side of the Jupyter API, on a real gateway with real sandboxes."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def test_version_is_public(api: Any) -> None:
    answer = await api.request("GET", "/api", auth="")
    assert answer.status_code == 200
    assert answer.json()["version"][0].isdigit()


ROUTES = [
    ("GET", "/api/me"),
    ("GET", "/api/status"),
    ("GET", "/api/kernelspecs"),
    ("GET", "/api/kernelspecs/python3"),
    ("GET", "/kernelspecs/python3/logo-64x64.png"),
    ("GET", "/api/kernels"),
    ("POST", "/api/kernels"),
    ("GET", f"/api/kernels/{uuid.uuid4()}"),
    ("DELETE", f"/api/kernels/{uuid.uuid4()}"),
    ("POST", f"/api/kernels/{uuid.uuid4()}/interrupt"),
    ("POST", f"/api/kernels/{uuid.uuid4()}/restart"),
    ("GET", f"/api/kernels/{uuid.uuid4()}/channels"),
    ("GET", "/api/sessions"),
    ("POST", "/api/sessions"),
    ("GET", f"/api/sessions/{uuid.uuid4()}"),
    ("PATCH", f"/api/sessions/{uuid.uuid4()}"),
    ("DELETE", f"/api/sessions/{uuid.uuid4()}"),
]


async def refused(api: Any, method: str, path: str, auth: str) -> Any:
    """The 401 of a request; an address that shows many bad keys is slowed down, so it may take a while."""
    async with asyncio.timeout(30):
        while True:
            answer = await api.request(method, path, auth=auth)
            assert answer.status_code in (401, 429)
            if answer.status_code == 401:
                return answer
            await asyncio.sleep(0.2)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_needs_a_key(api: Any, method: str, path: str) -> None:
    answer = await refused(api, method, path, "")
    assert answer.json()["message"]
    assert answer.json()["reason"] == "Unauthorized"


@pytest.mark.parametrize("auth", ["token nonsense", "Bearer lsp_none_none", "Basic YTpi"])
async def test_a_bad_key_is_no_key(api: Any, auth: str) -> None:
    await refused(api, "GET", "/api/kernels", auth)


async def test_a_key_in_the_query_is_for_websockets_only(api: Any) -> None:
    await refused(api, "GET", f"/api/kernels?token={api.key}", "")


async def test_me(api: Any) -> None:
    asked = '{"kernels": ["read", "write", "execute", "fly"], "nothing": ["read"]}'
    answer = await api.request("GET", f"/api/me?permissions={asked}")
    assert answer.json()["identity"]["username"] == "jupyter-user"
    assert answer.json()["permissions"] == {
        "kernels": ["read", "write", "execute"],
        "nothing": [],
        "updatable_fields": [],
    }
    assert (await api.request("GET", "/api/me?permissions=[1]")).status_code == 400


async def test_status(api: Any) -> None:
    model = (await api.request("GET", "/api/status")).json()
    assert STAMP.fullmatch(model["started"])
    assert STAMP.fullmatch(model["last_activity"])
    assert model["kernels"] >= 0
    assert model["connections"] >= 0


async def test_kernelspecs(api: Any) -> None:
    answer = await api.request("GET", "/api/kernelspecs?user=bob/python3")
    model = answer.json()
    assert model["default"] == "python3"
    assert {"python3", "bash"} <= set(model["kernelspecs"])
    for name, spec in model["kernelspecs"].items():
        assert spec["name"] == name
        assert spec["spec"]["language"] in ("python", "bash")
        assert spec["spec"]["argv"]
        one = await api.request("GET", f"/api/kernelspecs/{name}")
        assert one.json() == spec
        for path in spec["resources"].values():
            logo = await api.request("GET", path)
            assert logo.status_code == 200
            assert logo.headers["Content-Type"].startswith(("image/", "text/", "application/javascript"))


@pytest.mark.parametrize(
    "path",
    [
        "/api/kernelspecs/julia",
        "/kernelspecs/python3/kernel.json",
        "/kernelspecs/python3/..%2f..%2fsetup.cfg",
        "/kernelspecs/julia/logo-64x64.png",
    ],
)
async def test_kernelspecs_that_are_not_there(api: Any, path: str) -> None:
    answer = await api.request("GET", path)
    assert answer.status_code == 404
    assert answer.json()["message"]


async def test_a_kernel_lives_and_dies(api: Any) -> None:
    model = await api.start(name="python3", path="work/a.ipynb", env={"KERNEL_LAUNCH_TIMEOUT": "40"})
    kernel_id = model["id"]
    assert model["name"] == "python3"
    assert STAMP.fullmatch(model["last_activity"])
    assert model["connections"] == 0
    assert model["sandbox"]["start"]["kind"] in ("warm", "cold")

    assert kernel_id in [each["id"] for each in (await api.request("GET", "/api/kernels")).json()]
    one = (await api.request("GET", f"/api/kernels/{kernel_id}")).json()
    assert one["execution_state"] in ("starting", "idle")
    assert (await api.request("POST", f"/api/kernels/{kernel_id}/interrupt")).status_code == 204
    restarted = await api.request("POST", f"/api/kernels/{kernel_id}/restart")
    assert restarted.status_code == 200
    assert restarted.json()["id"] == kernel_id

    assert (await api.request("DELETE", f"/api/kernels/{kernel_id}")).status_code == 204
    assert kernel_id not in [each["id"] for each in (await api.request("GET", "/api/kernels")).json()]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/interrupt"), ("POST", "/restart")):
        gone = await api.request(method, f"/api/kernels/{kernel_id}{path}")
        assert gone.status_code == 404


async def test_a_kernel_without_a_body(api: Any) -> None:
    answer = await api.request("POST", "/api/kernels")
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/kernels/{answer.json()['id']}"
    assert answer.json()["name"] == "python3"
    await api.request("DELETE", f"/api/kernels/{answer.json()['id']}")


async def test_a_client_made_id_makes_one_kernel(api: Any, api_for: Any) -> None:
    wanted = {"name": "python3", "kernel_id": str(uuid.uuid4())}
    models = await asyncio.gather(*(api.start(**wanted) for _ in range(3)))
    assert {model["id"] for model in models} == {wanted["kernel_id"]}
    assert len({model["sandbox"]["id"] for model in models}) == 1
    other = await api_for("jupyter-other").request("POST", "/api/kernels", wanted)
    assert other.status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"[]",
        b"\xff",
        b'{"name": 5}',
        b'{"name": "no-such-kernel"}',
        b'{"kernel_id": "not a uuid"}',
        b'{"kernel_id": "../../etc"}',
        b'{"env": []}',
        b'{"env": {"A=B": "c"}}',
        b'{"env": {"": "c"}}',
        b'{"env": {"A": ["b"]}}',
        b'{"env": {"A": "\\u0000"}}',
        b'{"path": "' + b"x" * 5000 + b'"}',
        b'{"env": {"A": "' + b"x" * 200_000 + b'"}}',
    ],
)
async def test_bad_wishes(api: Any, body: bytes) -> None:
    answer = await api.request("POST", "/api/kernels", content=body)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_a_body_that_is_too_large(api: Any) -> None:
    answer = await api.request("POST", "/api/kernels", content=b" " * (2 * 1024 * 1024))
    assert answer.status_code == 413


async def test_methods_that_are_not_there(api: Any) -> None:
    assert (await api.request("PUT", "/api/kernels")).status_code == 405
    assert (await api.request("GET", f"/api/kernels/{uuid.uuid4()}/channels")).status_code == 400


async def test_env_is_data_and_never_mixed(api: Any, api_for: Any) -> None:
    """Overlapping creates by two users; KERNEL_USERNAME gives nobody an identity."""
    other = api_for("jupyter-other")
    wishes = [(api, "mine"), (other, "theirs")] * 2
    models = await asyncio.gather(
        *(who.start(env={"WHOSE": value, "KERNEL_USERNAME": "admin"}) for who, value in wishes)
    )
    for (who, value), model in zip(wishes, models, strict=True):
        async with who.channels(model["id"]) as channels:
            got = await channels.run("import os; print(os.environ['WHOSE'], os.environ['KERNEL_USERNAME'])")
            text = "".join(m["content"]["text"] for m in got if m["header"]["msg_type"] == "stream")
            assert text == f"{value} admin\n"
    mine = {each["id"] for each in (await api.request("GET", "/api/kernels")).json()}
    assert mine & {model["id"] for model in models} == {models[0]["id"], models[2]["id"]}


async def test_what_is_somebody_elses_is_not_there(api: Any, api_for: Any) -> None:
    kernel = await api.start()
    body = {"path": "a.ipynb", "type": "notebook", "kernel": {"id": kernel["id"]}}
    session = (await api.request("POST", "/api/sessions", body)).json()
    for other in (api_for("jupyter-other"), api_for("jupyter-stranger", "admin", "elsewhere")):
        for method, path in (
            ("GET", f"/api/kernels/{kernel['id']}"),
            ("DELETE", f"/api/kernels/{kernel['id']}"),
            ("POST", f"/api/kernels/{kernel['id']}/interrupt"),
            ("POST", f"/api/kernels/{kernel['id']}/restart"),
            ("GET", f"/api/sessions/{session['id']}"),
            ("DELETE", f"/api/sessions/{session['id']}"),
        ):
            assert (await other.request(method, path)).status_code == 404, path
        patch = await other.request("PATCH", f"/api/sessions/{session['id']}", {"path": "b.ipynb"})
        assert patch.status_code == 404
        attach = await other.request("POST", "/api/sessions", body)
        assert attach.status_code == 404
        assert (await other.request("GET", "/api/sessions")).json() == []
    assert (await api.request("GET", f"/api/kernels/{kernel['id']}")).status_code == 200


async def test_a_viewer_only_looks(api_for: Any) -> None:
    viewer = api_for("jupyter-viewer", "viewer")
    assert (await viewer.request("GET", "/api/kernels")).json() == []
    assert (await viewer.request("POST", "/api/kernels", {})).status_code == 403
    body = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    assert (await viewer.request("POST", "/api/sessions", body)).status_code == 403


async def test_a_session_lives_and_dies(api: Any) -> None:
    body = {"path": "dir/a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    first, second = await asyncio.gather(*(api.request("POST", "/api/sessions", body) for _ in range(2)))
    assert (first.status_code, second.status_code) == (201, 201)
    session = first.json()
    assert second.json()["id"] == session["id"]
    assert session["notebook"] == {"path": "dir/a.ipynb", "name": "a"}
    old_kernel = session["kernel"]["id"]
    assert session["id"] in [each["id"] for each in (await api.request("GET", "/api/sessions")).json()]

    path = f"/api/sessions/{session['id']}"
    renamed = (await api.request("PATCH", path, {"path": "dir/b.ipynb"})).json()
    assert (renamed["path"], renamed["kernel"]["id"]) == ("dir/b.ipynb", old_kernel)

    changed = (await api.request("PATCH", path, {"kernel": {"name": "bash"}})).json()
    assert changed["kernel"]["name"] == "bash"
    assert changed["kernel"]["id"] != old_kernel
    assert (await api.request("GET", f"/api/kernels/{old_kernel}")).status_code == 404

    assert (await api.request("DELETE", path)).status_code == 204
    assert (await api.request("GET", path)).status_code == 404
    assert (await api.request("GET", f"/api/kernels/{changed['kernel']['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        ({"type": "notebook"}, 400),
        ({"path": "a.ipynb"}, 400),
        ({"path": 5, "type": "notebook"}, 400),
        ({"path": "a", "type": "console", "kernel": {"name": "nope"}}, 400),
        ({"path": "a", "type": "console", "kernel": {"id": str(uuid.uuid4())}}, 404),
        ({"path": "a", "type": "console", "kernel": "python3"}, 400),
    ],
)
async def test_bad_sessions(api: Any, body: Any, status: int) -> None:
    answer = await api.request("POST", "/api/sessions", body)
    assert answer.status_code == status
    assert answer.json()["message"]
