"""The original's known failures: keys in clear, secrets in logs. All is marked, then looked for."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from llmsafespace_gateway.access.key_format import ANY_KEY
from tests.deployments import Remote
from tests.security.conftest import World
from tests.security.sockets import CHANNELS_PATH, STREAM_PATH, channels, dial, stream
from tests.security.support import Client, Operator, Person, until


@pytest.fixture(scope="module")
def person(operator: Operator) -> Person:
    """Whose secrets are to be kept."""
    return operator.person("secrets")


@pytest.fixture(scope="module")
def marks() -> dict[str, str]:
    """A mark for each way in."""
    ways = (
        *("env", "code", "file", "name", "stdin", "command", "argument", "once", "metadata", "bad", "query"),
        *("header", "token", "cell", "comm", "out", "idem", "patch"),
    )
    return {way: f"{way}{secrets.token_hex(12)}" for way in ways}


@pytest.fixture(scope="module")
async def used(gateway: Any, person: Person, marks: dict[str, str]) -> str:
    """Send every mark through the gateway once, then wait until the last request is in the log."""
    client, m = person.client, marks
    body = {"runtime": "python", "env": {"SECRET": m["env"]}, "files": {"f": m["file"]}}
    box = client.made("POST", "/api/v1/sandboxes", body | {"metadata": {"m": m["metadata"]}})
    base = f"/api/v1/sandboxes/{box['id']}"
    try:
        said = client.output(box["id"], f"print('{m['code']}', '{m['out']}', input())", stdin=m["stdin"])
        assert m["stdin"] in said
        client.run(box["id"], f"raise ValueError('{m['code']}')", env={"SECRET": m["once"]})
        client.made("POST", f"{base}/commands", {"command": f"echo {m['command']}"})
        client.made("POST", f"{base}/commands", {"argv": ["echo", m["argument"]]})
        client.put(f"{base}/files/other", content=m["file"].encode())
        client.patch(base, json={"metadata": {"m": m["patch"]}})
        # What is wrong is worth as much as what is right.
        client.post("/api/v1/sandboxes", json={"runtime": "python", "env": {"A=": m["bad"]}})
        client.post("/api/v1/sandboxes", content=f'{{"env": "{m["bad"]}'.encode())
        client.post("/api/v1/sandboxes", json={m["bad"]: m["bad"], "runtime": m["bad"]})
        client.post("/api/kernels", json={"name": "python3", "env": {"A=B": m["bad"]}})
        client.post(f"{base}/execute", json={"content": m["bad"], "timeout": m["bad"]})
        client.get(f"{base}/files", params={"path": f"/workspace/{m['query']}"})
        client.get("/api/kernels", params={"token": m["token"], "x": m["query"]})
        client.get("/api/v1/sandboxes", params={"token": m["token"], "x": m["query"]})
        client.get(f"/api/v1/{m['query']}")
        client.get("/api/me", headers={"X-Secret": m["header"], "Cookie": f"a={m['header']}"})
        client.post("/api/v1/sandboxes", json={}, headers={"Idempotency-Key": f"{m['idem']} {m['idem']}"})
        with Client(gateway.url, f"lsp_{person.key_id}_{m['token']}") as wrong:
            wrong.get("/api/v1/user")
            wrong.get("/api/me")
        await over_websockets(gateway, person, box, m)
        mark = secrets.token_hex(8)
        client.get(base, headers={"X-Request-Id": mark})
        if not isinstance(gateway, Remote):
            until(lambda: any(mark in line for line in gateway.output), "the last request is in the log")
        return str(box["id"])
    finally:
        client.made("DELETE", base)


async def over_websockets(gateway: Any, person: Person, box: dict[str, Any], m: dict[str, str]) -> None:
    """The same over the websockets; the keys go in the query, where a careless log would have them."""
    ids = {"sandbox_id": box["id"], "kernel_id": box["kernelId"]}
    for path in (CHANNELS_PATH, STREAM_PATH):
        for key in (person.key, m["token"]):
            with contextlib.suppress(InvalidStatus):
                await (await dial(gateway.url, path.format(**ids), None, query=f"?token={key}")).close()
    from tests.security.support import Tenant

    tenant = Tenant("secrets", person, ids)
    async with channels(gateway.url, tenant, person.key) as mine:
        await mine.run(f"print('{m['cell']}')")
        await mine.send("comm_msg", {"comm_id": "none", "data": {"secret": m["comm"]}})
        await mine.run("1")
    async with channels(gateway.url, tenant, person.key) as mine:
        await mine.socket.send(f'{{"header": "{m["bad"]}"')
        await mine.closed()
    async with stream(gateway.url, tenant, person.key) as mine_too:
        await mine_too.send({"type": "execute", "content": f"print('{m['cell']}')"})
        while (await next_message(mine_too))["type"] != "execution_complete":
            pass
        await mine_too.send({"type": m["bad"], "content": m["bad"]})
        await mine_too.receive("error")


async def next_message(socket: Any) -> dict[str, Any]:
    import json

    message: dict[str, Any] = json.loads(await socket.socket.recv())
    return message


def test_no_secret_is_in_the_log(gateway: Any, used: str, person: Person, marks: dict[str, str]) -> None:
    output = "".join(gateway.output)
    assert used in output  # it is the log that is looked at
    for way, mark in marks.items():
        assert [line for line in gateway.output if mark in line] == [], way
    assert person.key not in output


def test_the_only_key_in_the_log_is_the_first_one_shown_once(gateway: Any, used: str) -> None:
    shown = [line for line in gateway.output if ANY_KEY.search(line) and not line.startswith("    export")]
    assert [line for line in shown if gateway.admin_key not in line] == []
    assert len(shown) == 1


def all_files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                yield path, path.read_bytes()


def test_no_key_is_on_the_disk(gateway: Any, used: str, person: Person, world: World) -> None:
    """Only hashes are kept: neither a whole key nor its secret half is in any file of the gateway."""
    found = list(all_files(gateway.data_dir))
    assert any(path.name.startswith("db.sqlite") for path, _ in found)
    for path, content in found:
        assert ANY_KEY.search(content.decode("latin-1")) is None, path
        for key in (person.key, gateway.admin_key, world.tenant.owner.key):
            assert key.encode() not in content, path
            assert key.rpartition("_")[2].encode() not in content, path


def test_what_runs_in_a_sandbox_is_not_on_the_gateways_disk(
    gateway: Any, used: str, marks: dict[str, str]
) -> None:
    """Env, code, files, stdin and output stay in the sandbox; the store has only what its owner noted."""
    noted = ("metadata", "patch")
    for path, content in all_files(gateway.data_dir):
        for way, mark in marks.items():
            if way not in noted:
                assert mark.encode() not in content, (path, way)


def test_the_database_is_readable_by_nobody_else(gateway: Any) -> None:
    for path in gateway.data_dir.glob("db.sqlite*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_stored_keys_are_hashes_of_their_own(gateway: Any, person: Person) -> None:
    with contextlib.closing(sqlite3.connect(f"file:{gateway.data_dir}/db.sqlite?mode=ro", uri=True)) as store:
        rows = dict(store.execute("select id, hash from api_keys").fetchall())
    assert len(set(rows.values())) == len(rows)
    assert all(len(hashed) == 64 for hashed in rows.values())
    assert rows[person.key_id] != person.key.rpartition("_")[2]


def test_secrets_are_on_no_command_line(gateway: Any, person: Person, marks: dict[str, str]) -> None:
    """Any user of the host may read the command lines of all processes."""
    assert gateway.data_dir.exists()  # its processes are on this machine
    box = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python", "env": {"S": marks["env"]}})
    try:
        person.client.output(box["id"], "1", env={"S": marks["once"]})
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().decode("latin-1")
                assert marks["env"] not in line
                assert marks["once"] not in line
                assert person.key not in line
    finally:
        person.client.delete(f"/api/v1/sandboxes/{box['id']}")


def test_keys_are_shown_once(person: Person) -> None:
    made = person.client.made("POST", "/api/v1/user/apikeys", {"name": "once"})
    for path in ("/api/v1/user/apikeys", "/api/v1/user"):
        answer = person.client.get(path)
        assert made["key"] not in answer.text
        assert made["key"].rpartition("_")[2] not in answer.text
        assert "hash" not in answer.text


def test_metrics_and_descriptions_tell_nothing_of_anybody(
    gateway: Any, used: str, person: Person, marks: dict[str, str]
) -> None:
    with Client(gateway.url) as anyone:
        for path in ("/metrics", "/healthz", "/readyz", "/api/v1/openapi.json", "/api/v1/docs", "/api"):
            text = anyone.get(path).text
            for value in (used, person.id, person.name, person.key_id, *marks.values()):
                assert value not in text, path


def test_the_audit_log_names_decisions_and_no_secrets(
    used: str, person: Person, operator: Operator, marks: dict[str, str]
) -> None:
    key = operator.key(operator.person("secrets", "admin").id)["key"]
    log = operator.client(key).get("/api/v1/audit", params={"limit": 1000}).text
    assert used in log
    for way in ("env", "code", "stdin", "once", "token", "file", "out", "cell", "comm", "bad", "header"):
        assert marks[way] not in log, way
    assert person.key not in log
