"""Every execution, through any door, is one row of the audit log and one count; so is a refusal.

A key that is refused again and again gets a few rows, which say how many were left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_client.manager import start_new_kernel

from llmsafespace import AsyncSandbox, SandboxError
from llmsafespace.jupyter.install import install
from tests.conftest import Gateway, make_gateway
from tests.security.conftest import World
from tests.security.sockets import SUBPROTOCOLS, channels, stream
from tests.security.support import Client, Operator, Person, in_rest_shape

CODE = {
    "code": "1",
    "silent": False,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": False,
}
REST = ["rest", "ndjson", "sse", "command", "packages"]
DOORS = [*REST, "stream", *SUBPROTOCOLS, "sdk"]
ACTIONS = {"command": "command.start", "packages": "packages.install"}
NAMES = {"stream": "stream", "legacy": "jupyter", "v1": "jupyter", "durable": "durable", "sdk": "durable"}
# What a row says of an execution besides its id, its door and its size.
MORE: dict[str, set[str]] = {"command": {"command_id"}, "packages": {"command_id", "packages"}}


def _rows(admin: Any, execution: str) -> list[dict[str, Any]]:
    items = admin.made("GET", "/api/v1/audit?limit=1000")["items"]
    return [row for row in items if row["details"].get("execution") == execution]


def _counted(url: str) -> dict[tuple[str, str], float]:
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r'llmsafespace_execution_requests_total{door="(\w+)",outcome="(\w+)"} (\S+)', text)
    return {(door, outcome): float(count) for door, outcome, count in found}


async def _ask(url: str, world: Any, person: Any, door: str) -> str:
    """Ask for an execution through a door; its id."""
    base, execution = f"/api/v1/sandboxes/{world.tenant.sandbox}", uuid.uuid4().hex
    if door in ("rest", "ndjson", "sse"):
        accept = {"rest": "application/json", "ndjson": "application/x-ndjson", "sse": "text/event-stream"}
        body = {"content": "1", "executionId": execution}
        headers = {"Accept": accept[door]}
        await asyncio.to_thread(person.client.post, f"{base}/execute", json=body, headers=headers)
    elif door == "command":
        started = {"id": execution, "command": "true"}
        await asyncio.to_thread(person.client.post, f"{base}/commands", json=started)
    elif door == "packages":
        wanted = {"commandId": execution, "packages": ["pip"], "wait": False}
        await asyncio.to_thread(person.client.post, f"{base}/packages", json=wanted)
    elif door == "sdk":
        box = await AsyncSandbox.connect(world.tenant.sandbox, api_url=url, api_key=person.key)
        output = box.stream_code("1")
        execution = output.id
        with contextlib.suppress(SandboxError):
            async for _ in output.events():
                pass
        await box.close()
    elif door == "stream":
        async with stream(url, world.tenant, person.key) as socket:
            await socket.send({"type": "execute", "executionId": execution, "content": "1"})
            while json.loads(await socket.socket.recv())["type"] not in ("execution_complete", "error"):
                pass
    else:
        async with channels(url, world.tenant, person.key, SUBPROTOCOLS[door]) as socket:
            await socket.answers(await socket.send("execute_request", CODE, msg_id=execution))
    return execution


@pytest.fixture(scope="module")
def tenant_admin(world: World, operator: Operator) -> Any:
    return operator.person(world.tenant.name, "admin").client


def _changed(url: str, before: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    after = _counted(url)
    return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}


def _is_row(row: dict[str, Any], door: str, outcome: str, target: str, person: Person | _Runner) -> None:
    """It says who asked for what, where, through which door and to what end; the same through each."""
    assert (row["action"], row["target"]) == (ACTIONS.get(door, "sandbox.execute"), target)
    assert (row["outcome"], row["userId"], row["keyId"]) == (outcome, person.id, person.key_id)
    assert row["details"]["door"] == NAMES.get(door, "rest")
    assert set(row["details"]) - {"context", "size"} == {"execution", "door", *MORE.get(door, {"type"})}
    assert ("size" in row["details"]) == (door != "packages")


@pytest.mark.parametrize("door", DOORS)
async def test_an_execution_is_one_row_and_one_count(
    door: str, gateway: Any, world: World, tenant_admin: Any
) -> None:
    before = _counted(gateway.url)
    execution = await _ask(gateway.url, world, world.tenant.owner, door)
    (row,) = _rows(tenant_admin, execution)
    _is_row(row, door, "ok", world.tenant.sandbox, world.tenant.owner)
    assert _changed(gateway.url, before) == {(NAMES.get(door, "rest"), "ok"): 1}


def test_a_provisioned_kernel_leaves_one_row_and_one_count_an_execution(
    gateway: Any, world: World, tenant_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any Jupyter application runs it, through the SDK's bridge."""
    monkeypatch.setenv("LLMSAFESPACE_API_KEY", world.tenant.owner.key)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    install(name="audited", runtime="python", url=gateway.url, prefix=str(tmp_path))
    manager, client = start_new_kernel(startup_timeout=120, kernel_name="audited")
    try:
        before = _counted(gateway.url)
        execution = client.execute_interactive("1", timeout=120)["parent_header"]["msg_id"]
        (row,) = _rows(tenant_admin, execution)
        _is_row(row, "durable", "ok", row["target"], world.tenant.owner)
        assert _changed(gateway.url, before) == {("durable", "ok"): 1}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def guest(world: World, operator: Operator) -> Person:
    """A viewer with a grant whose key was refused nothing yet."""
    made = operator.person(world.tenant.name, "viewer", "guest")
    grant = {"sandboxId": world.tenant.sandbox, "userId": made.id, "level": "viewer"}
    world.tenant.owner.client.made("POST", "/api/v1/grants", grant)
    return made


@pytest.mark.parametrize("door", DOORS)
async def test_a_refused_execution_is_one_row_and_one_count(
    door: str, gateway: Any, world: World, guest: Person, tenant_admin: Any
) -> None:
    """A guest who may only look. REST refuses the key before it reads the body, which has the id."""
    before = _counted(gateway.url)
    known = {row["id"] for row in _rows(tenant_admin, "")}
    execution = await _ask(gateway.url, world, guest, door)
    assert _changed(gateway.url, before) == {(NAMES.get(door, "rest"), "forbidden"): 1}
    if door in REST:
        (row,) = (row for row in _rows(tenant_admin, "") if row["id"] not in known)
        assert row["details"] == {"execution": "", "door": "rest"}
        assert (row["action"], row["target"]) == (
            ACTIONS.get(door, "sandbox.execute"),
            world.tenant.sandbox,
        )
    else:
        (row,) = _rows(tenant_admin, execution)
        _is_row(row, door, "forbidden", world.tenant.sandbox, guest)


@pytest.fixture(scope="module")
def strict() -> Iterator[Gateway]:
    """A gateway whose keys may start 40 executions at once, and then one in 100 s."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        Path(folder).chmod(0o755)
        made = make_gateway(Path(folder), rate_limit=0.01, rate_burst=8, warm_pools=[])
        yield made
        made.end_all()


@pytest.fixture(scope="module")
def box(strict: Gateway) -> dict[str, Any]:
    with Client(strict.url, strict.key("runner")) as client:
        return client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})


@pytest.mark.parametrize("door", [door for door in DOORS if door != "sdk"])  # which waits, as it is told to
async def test_every_door_takes_from_one_limit(door: str, strict: Gateway, box: dict[str, Any]) -> None:
    """A key has one number of executions, whatever its doors: what one used up is gone for the others."""
    key = strict.key("runner")
    path, person = f"/api/kernels/{box['kernelId']}/channels", _Runner(strict.url, key)
    async with channels_at(strict.url, path, person.client, SUBPROTOCOLS["durable"]) as socket:
        sent = [await socket.send("execute_request", CODE) for _ in range(45)]
        answered: dict[str, Any] = {}
        while len(answered) < len(sent):
            message = await socket.receive()
            if message["channel"] == "shell":
                answered[message["parent_header"]["msg_id"]] = message["content"].get("ename")
    assert [answered[each] for each in sent] == [None] * 40 + ["RateLimited"] * 5
    before = _counted(strict.url)
    execution = await _ask(strict.url, _Place(box), person, door)
    assert _changed(strict.url, before) == {(NAMES.get(door, "rest"), "rate_limited"): 1}
    with Client(strict.url, strict.key("boss", "admin")) as admin:
        (row,) = _rows(admin, execution)
    _is_row(row, door, "rate_limited", box["id"], person)


def _connection(url: str, key: str) -> dict[str, Any]:
    return {"base_url": url, "headers": {"Authorization": f"Bearer {key}"}, "timeout": 60}


class _Runner:
    """Somebody whose client does not wait when it is told to, as `_ask` takes one."""

    def __init__(self, url: str, key: str) -> None:
        self.key = key
        self.client: Any = httpx.Client(**_connection(url, key))
        me = self.client.get("/api/v1/user").json()
        self.id, self.key_id = me["id"], me["keyId"]


class _Place:
    """One sandbox as the world's tenant is one, for `_ask`."""

    def __init__(self, box: dict[str, Any]) -> None:
        self.sandbox = box["id"]
        self.values = {"sandbox_id": box["id"], "kernel_id": box["kernelId"]}
        self.tenant: Any = self


def test_refusals_over_rest_are_audited(world: World, guest: Person, tenant_admin: Any) -> None:
    """By a scope that is missing, before the body is looked at; and of what is no execution, too."""
    base = f"/api/v1/sandboxes/{world.tenant.sandbox}"
    in_rest_shape(guest.client.post(f"{base}/execute", json={"content": "1"}), 403)
    in_rest_shape(guest.client.delete(base), 403)
    items = tenant_admin.made("GET", "/api/v1/audit?outcome=forbidden&limit=1000")["items"]
    mine = [(row["action"], row["target"]) for row in items if row["userId"] == guest.id]
    assert ("sandbox.execute", world.tenant.sandbox) in mine
    assert ("sandbox.delete", world.tenant.sandbox) in mine


async def test_a_request_that_is_sent_again_is_one_execution(
    gateway: Any, world: World, tenant_admin: Any
) -> None:
    """As the SDK does over a connection that broke."""
    execution = uuid.uuid4().hex
    for _ in range(2):
        durable = SUBPROTOCOLS["durable"]
        async with channels(gateway.url, world.tenant, world.tenant.owner.key, durable) as socket:
            await socket.answers(await socket.send("execute_request", CODE, msg_id=execution))
    assert len(_rows(tenant_admin, execution)) == 1


async def test_what_the_sandbox_refuses_is_not_audited_as_accepted(
    gateway: Any, world: World, tenant_admin: Any
) -> None:
    """An id that has run with other code: one entry and one count each, of the run and of the refusal."""
    execution, before = uuid.uuid4().hex, _counted(gateway.url)
    durable = SUBPROTOCOLS["durable"]
    async with channels(gateway.url, world.tenant, world.tenant.owner.key, durable) as socket:
        await socket.answers(await socket.send("execute_request", CODE, msg_id=execution))
        await socket.send("execute_request", CODE | {"code": "2"}, msg_id=execution)
        while (frame := await socket.socket.recv()) is not None:
            if isinstance(frame, str):
                break
    assert json.loads(frame)["error"]["code"] == "conflict"
    rows = _rows(tenant_admin, execution)
    assert sorted(row["outcome"] for row in rows) == ["conflict", "ok"]
    assert _changed(gateway.url, before) == {("durable", "ok"): 1, ("durable", "conflict"): 1}


@pytest.fixture(scope="module")
def slow() -> Iterator[Gateway]:
    """A gateway with a low limit: 20 requests at once, so 100 executions."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        Path(folder).chmod(0o755)
        made = make_gateway(Path(folder), rate_limit=1.0, rate_burst=20, warm_pools=[])
        yield made
        made.end_all()


@pytest.mark.parametrize("subprotocol", SUBPROTOCOLS.values(), ids=list(SUBPROTOCOLS))
async def test_a_kernel_websocket_is_limited(slow: Gateway, subprotocol: str | None) -> None:
    """What is over the limit is answered, so that no client waits: an error named RateLimited, then idle."""
    operator = Operator(slow.url, slow.admin_key)
    with Client(slow.url, slow.key(f"runner-{uuid.uuid4().hex[:6]}")) as client:
        box = client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})
        path = f"/api/kernels/{box['kernelId']}/channels"
        async with channels_at(slow.url, path, client, subprotocol) as socket:
            sent = [await socket.send("execute_request", CODE) for _ in range(130)]
            replies: dict[str, Any] = {}
            idle: set[str] = set()
            while len(replies) < len(sent) or len(idle) < len(sent):
                message = await socket.receive()
                parent = message["parent_header"].get("msg_id")
                if message["channel"] == "shell":
                    assert parent not in replies
                    replies[parent] = message["content"]
                elif message["content"].get("execution_state") == "idle":
                    idle.add(parent)
        names = [replies[each].get("ename") for each in sent]
        assert names[:100] == [None] * 100
        assert names.count("RateLimited") >= 20
        assert all(replies[each]["status"] == "error" for each in sent[-10:])
        client.delete(f"/api/v1/sandboxes/{box['id']}")
    for _ in range(8):  # what is left out of the first entries is told within seconds
        await asyncio.sleep(1.5)
        if (told := _told(operator.admin, set(sent))) == names.count("RateLimited"):
            break
    assert told == names.count("RateLimited")
    operator.close()


def _told(admin: Any, executions: set[str]) -> int:
    """How many executions of one key the audit log has as over the limit, each or by a count."""
    asked = "/api/v1/audit?action=sandbox.execute&outcome=rate_limited&limit=999"
    rows = admin.made("GET", asked)["items"]
    keys = {row["keyId"] for row in rows if row["details"].get("execution") in executions}
    mine = [row["details"] for row in rows if row["keyId"] in keys]
    return sum(("execution" in details) + details.get("left_out", 0) for details in mine)


def channels_at(url: str, path: str, client: Client, subprotocol: str | None) -> Any:
    """The channels of a kernel that is no tenant's of the world."""
    import contextlib

    from tests.integration.jupyter.conftest import Channels
    from tests.security.sockets import dial

    @contextlib.asynccontextmanager
    async def opened() -> Any:
        session = uuid.uuid4().hex
        key = client.headers["Authorization"].removeprefix("Bearer ")
        socket = await dial(url, path, key, subprotocol=subprotocol, query=f"?session_id={session}")
        try:
            yield Channels(socket, session)
        finally:
            await socket.close()

    return opened()


def test_the_default_limit_lets_a_thousand_cells_pass() -> None:
    from llmsafespace_gateway.access.rates import RateLimits
    from llmsafespace_gateway.app import GatewayApp

    app = GatewayApp()
    limits = RateLimits(app.rate_limit, app.rate_burst)
    for _ in range(1000):
        limits.execution("k")


CONNECTS = """
import os, socket
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["HTTPS_PROXY"])
for number in range(300):
    with socket.create_connection((proxy.hostname, proxy.port), 5) as connection:
        connection.sendall(f"CONNECT evil.example:{1 + number} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
        assert b" 403 " in connection.recv(100)
print("refused")
"""


def test_refused_connections_are_counted_and_not_listed(world: World, tenant_admin: Any) -> None:
    """Code that tries as hard as it can leaves an entry a minute, with how often it tried."""
    mine, box = world.tenant.owner.client, world.tenant.sandbox
    assert mine.output(box, CONNECTS) == "refused\n"
    items = tenant_admin.made("GET", f"/api/v1/audit?action=egress&target={box}&limit=1000")["items"]
    seen = [row for row in items if row["details"].get("host") == "evil.example"]
    assert 1 <= len(seen) <= 3  # a minute may end meanwhile
    assert sum(row["details"]["count"] for row in seen) == 300
    assert {(row["outcome"], row["userId"]) for row in seen} == {("denied", world.tenant.owner.id)}
