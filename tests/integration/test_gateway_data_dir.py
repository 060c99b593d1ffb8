"""One gateway per data dir; a database that is broken, new or gone costs no living sandbox."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.data_dir import DataDir
from llmsafespace_gateway.errors import ApiError
from tests.conftest import Gateway, make_gateway
from tests.integration.rest_support import Client, is_error


def start(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A gateway that must refuse to start."""
    command = [sys.executable, "-m", "llmsafespace_gateway", "--port", "0", "--data-dir", str(folder)]
    return subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def own(data_root: Path, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    folder = data_root / f"d{abs(hash(request.node.name)) % 10**6}"
    folder.mkdir()
    gateway = make_gateway(folder, warm_pools=[])
    yield gateway
    gateway.stop()


def client(gateway: Gateway) -> Client:
    return Client(gateway.url, gateway.admin_key)


def sandboxes_of(gateway: Gateway) -> list[Path]:
    return sorted((gateway.data_dir / "sandboxes").iterdir())


# -- the lock ------------------------------------------------------------------------------------------

HOLD = """
import os, subprocess, sys, time
from llmsafespace_gateway.data_dir import DataDir
held = DataDir.take(sys.argv[1], "http://127.0.0.1:1")
child = subprocess.Popen(["sleep", "60"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    first = DataDir.take(str(tmp_path), "http://127.0.0.1:8080")
    with pytest.raises(ApiError) as caught:
        DataDir.take(str(tmp_path / "."), "http://127.0.0.1:9090")
    assert f"process {os.getpid()}" in caught.value.message
    assert "http://127.0.0.1:8080" in caught.value.message
    (tmp_path / "gateway.json").write_bytes(b"\xff")
    with pytest.raises(ApiError, match="another gateway"):
        DataDir.take(str(tmp_path), "x")
    (tmp_path / "gateway.json").unlink()  # and whatever else somebody clears away
    with pytest.raises(ApiError, match="another gateway"):
        DataDir.take(str(tmp_path), "x")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ApiError):
        DataDir.take(str(tmp_path / "link"), "x")
    first.release()
    DataDir.take(str(tmp_path), "x").release()


def test_a_killed_holder_and_its_children_hold_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid, child = map(int, holder.stdout.readline().split())
        with pytest.raises(ApiError, match=f"process {pid}"):
            DataDir.take(str(tmp_path), "x")
        holder.kill()
        holder.wait()
        try:
            DataDir.take(str(tmp_path), "x").release()
        finally:
            os.kill(child, 9)


def test_a_second_gateway_touches_nothing(own: Gateway) -> None:
    with client(own) as admin, admin.sandbox() as sandbox:
        before = sandboxes_of(own)
        refused = start(own.data_dir)
        assert refused.returncode == 1
        assert f"process {own.pid}" in refused.stderr
        assert own.url in refused.stderr
        assert "Traceback" not in refused.stderr
        assert sandboxes_of(own) == before
        assert admin.execute(sandbox, "print(1)")["stdout"] == "1\n"
        own.kill()  # its keepers live on, and do not hold the lock
        own.start()
        assert admin.execute(sandbox, "print(2)")["stdout"] == "2\n"


# -- the database --------------------------------------------------------------------------------------


def break_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096, 2):
        content[page * 4096 : page * 4096 + 2000] = os.urandom(2000)
    path.write_bytes(content)


DAMAGE: dict[str, Any] = {
    "no database": lambda path: path.write_bytes(b"hello" * 5000),
    "header gone": lambda path: path.write_bytes(bytes(4096) + path.read_bytes()[4096:]),
    "pages overwritten": break_pages,
    "cut off": lambda path: os.truncate(path, 4096 * 3 + 100),
}


def test_damage_is_said_and_costs_no_sandbox(own: Gateway) -> None:
    """A corrupt file in four ways: one line with the way to restore; then restored, then started anew."""
    database = own.data_dir / "db.sqlite"
    admin = client(own)
    sandbox = admin.post("/sandboxes", json={"runtime": "python"}).json()["id"]
    assert admin.execute(sandbox, "x = 41")["end"] == "ok"
    own.stop()
    backup = database.read_bytes()
    living = sandboxes_of(own)
    for how, damage in DAMAGE.items():
        for left in own.data_dir.glob("db.sqlite-*"):
            left.unlink()
        damage(database)
        refused = start(own.data_dir)
        assert refused.returncode == 1, how
        assert "Traceback" not in refused.stderr, how
        assert "damaged" in refused.stderr, (how, refused.stderr)
        assert "restore" in refused.stderr
        assert sandboxes_of(own) == living
        database.write_bytes(backup)
    own.start()
    assert admin.execute(sandbox, "print(x + 1)")["stdout"] == "42\n"
    own.stop()
    database.write_bytes(b"")
    old, own.admin_key = own.admin_key, ""
    own.start()
    assert own.admin_key not in ("", old)
    with client(own) as anew:
        assert anew.execute(sandbox, "print(x + 2)")["stdout"] == "43\n"
        (row,) = anew.get("/sandboxes?status=running").json()["items"]
        assert row["id"] == sandbox
        assert anew.delete(f"/sandboxes/{sandbox}").status_code == 204
    assert any("adopted" in line for line in own.output)
    admin.close()


def test_a_newer_or_unreadable_database_is_said(data_root: Path) -> None:
    folder = data_root / "newer"
    folder.mkdir()
    with sqlite3.connect(folder / "db.sqlite") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999_later')")
    database.close()
    refused = start(folder)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert "9999_later" in refused.stderr
    assert "newer gateway" in refused.stderr
    (folder / "db.sqlite").unlink()
    (folder / "db.sqlite").mkdir()
    refused = start(folder)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert "db.sqlite" in refused.stderr


def test_a_locked_database_delays_no_end(own: Gateway) -> None:
    """While somebody else holds the database: the end counts in every answer, and is written afterwards."""
    with client(own) as admin:
        sandbox = admin.post("/sandboxes", json={"runtime": "python"}).json()["id"]
        locked = sqlite3.connect(own.data_dir / "db.sqlite", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        try:
            assert admin.delete(f"/sandboxes/{sandbox}").status_code == 204
            assert admin.get(f"/sandboxes/{sandbox}").json()["end"] == "terminated"
            assert admin.get(f"/sandboxes/{sandbox}/status").json()["status"] == "ended"
            assert admin.get("/sandboxes?status=running").json()["items"] == []
            assert [each["id"] for each in admin.get("/sandboxes?status=ended").json()["items"]] == [sandbox]
            refused = admin.post(f"/sandboxes/{sandbox}/execute", json={"content": "1"})
            assert is_error(refused, 410, "gone")["details"]["end"] == "terminated"
            assert admin.get("/system").json()["unwrittenEnds"] == 1
            written = locked.execute("SELECT state FROM sandboxes WHERE id = ?", (sandbox,)).fetchone()
            assert written == ("running",)
            busy = admin.post("/sandboxes", json={"runtime": "python"})
            assert "locked" in is_error(busy, 503, "service_unavailable")["message"]
            assert sandboxes_of(own) == []
        finally:
            locked.execute("ROLLBACK")
        until = time.monotonic() + 30
        while locked.execute("SELECT state FROM sandboxes WHERE id = ?", (sandbox,)).fetchone() != ("ended",):
            assert time.monotonic() < until
            time.sleep(0.1)
        locked.close()
        while admin.get("/system").json()["unwrittenEnds"]:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_an_end_that_could_not_be_written_survives_the_gateway(own: Gateway) -> None:
    with client(own) as admin:
        sandbox = admin.post("/sandboxes", json={"runtime": "python", "maxLifetime": 3}).json()["id"]
        locked = sqlite3.connect(own.data_dir / "db.sqlite", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + 60
        while admin.get(f"/sandboxes/{sandbox}").json()["status"] != "ended":
            assert time.monotonic() < until
            time.sleep(0.1)
        own.kill()
        locked.execute("ROLLBACK")
        locked.close()
        own.start()
        assert admin.get(f"/sandboxes/{sandbox}").json()["end"] == "expired"


def test_quarantine_is_shown_to_admins(own: Gateway) -> None:
    with client(own) as admin:
        sandbox = admin.post("/sandboxes", json={"runtime": "python"}).json()["id"]
        (folder,) = sandboxes_of(own)
        own.kill()
        (folder / "state.json").write_bytes(b"{")
        own.start()
        (told,) = admin.get("/system").json()["quarantined"]
        assert (told["name"], told["sandboxId"], told["kept"]) == (folder.name, sandbox, False)
        assert admin.get(f"/sandboxes/{sandbox}").json()["end"] == "lost"
        with Client(own.url, own.key("somebody")) as other:
            is_error(other.get("/system"), 403, "forbidden")
        assert json.loads((own.data_dir / "gateway.json").read_bytes())["pid"] == own.pid
