"""Backups of the store: made while rows are written, restored into a gateway, refused when they are none."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Gateway, make_gateway
from tests.integration.rest_support import Client


def command(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "llmsafespace_gateway", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env={**os.environ, **more})


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


@pytest.fixture
def own(data_root: Path) -> Iterator[Gateway]:
    gateway = make_gateway(Path(tempfile.mkdtemp(dir=data_root)), warm_pools=[])
    yield gateway
    gateway.stop()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A data dir with one key and no gateway."""
    folder = tmp_path / "data"
    made = command("keys", "create", "--data-dir", folder, "--user", "ada", "--role", "admin")
    assert made.returncode == 0, made.stderr
    return folder


def test_backups_of_a_running_gateway_are_whole_and_serve(own: Gateway, tmp_path: Path) -> None:
    """Each of them, taken while users are made, holds every user that was made before it began."""
    made: list[str] = []
    stop = threading.Event()

    def write() -> None:
        with Client(own.url, own.admin_key) as admin:
            while not stop.is_set():
                name = f"user{len(made)}"
                assert admin.post("/users", json={"name": name}).status_code == 201
                made.append(name)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        taken = []
        for number in range(3):
            before = len(made)
            path = tmp_path / f"backup{number}"
            done = command("backup", "--data-dir", own.data_dir, path)
            assert done.returncode == 0, done.stderr
            taken.append((before, path))
    finally:
        stop.set()
        writing.join()
    assert taken[-1][0] > taken[0][0], "nothing was written meanwhile"
    for before, path in taken:
        assert path.stat().st_mode & 0o777 == 0o600
        names = {name for (name,) in rows(path, "SELECT name FROM users")}
        assert names >= set(made[:before])
        assert rows(path, "PRAGMA quick_check") == [("ok",)]
        assert rows(path, "PRAGMA journal_mode") == [("delete",)]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["backup0", "backup1", "backup2"]
    refused = command("restore", "--data-dir", own.data_dir, path)
    assert refused.returncode == 1
    assert f"process {own.pid}" in refused.stderr
    own.stop()
    restored = command("restore", "--data-dir", own.data_dir, taken[0][1])
    assert restored.returncode == 0, restored.stderr
    (kept,) = own.data_dir.glob("db.sqlite.2*")
    assert str(kept) in restored.stdout
    assert {name for (name,) in rows(kept, "SELECT name FROM users")} >= set(made)
    own.start()
    with Client(own.url, own.admin_key) as admin:
        names = {user["name"] for user in admin.get("/users?limit=1000").json()["items"]}
        assert names == {name for (name,) in rows(taken[0][1], "SELECT name FROM users")}
        with admin.sandbox() as sandbox:
            assert admin.execute(sandbox, "print(6 * 7)")["stdout"] == "42\n"


def test_a_plain_copy_after_the_end_is_whole(own: Gateway, tmp_path: Path) -> None:
    """Even while another program has the database open, so that SQLite itself keeps its log."""
    path = own.data_dir / "db.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM users").fetchall()
        with Client(own.url, own.admin_key) as admin:
            assert admin.post("/users", json={"name": "last"}).status_code == 201
        own.stop()
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
    assert rows(copy, "SELECT name FROM users WHERE name = 'last'") == [("last",)]


def test_a_restore_into_a_new_place(store: Path, tmp_path: Path) -> None:
    assert command("backup", "--data-dir", store, tmp_path / "b").returncode == 0
    done = command("restore", "--data-dir", tmp_path / "new", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "kept" not in done.stdout
    listed = command("users", "list", "--data-dir", tmp_path / "new")
    assert "ada" in listed.stdout


# -- what is refused -----------------------------------------------------------------------------------------


def _foreign(path: Path, good: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE songs (name)")
        database.commit()


def _newer(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999_later'")
        database.commit()


def _broken(path: Path, good: Path) -> None:
    content = bytearray(good.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, good: path.write_text("no database " * 500), "not a SQLite database"),
        (lambda path, good: path.write_bytes(b""), "not the database of a gateway"),
        (lambda path, good: path.write_bytes(good.read_bytes()[: 4096 * 3]), "damaged"),
        (lambda path, good: None, "is not a file"),
        (lambda path, good: path.mkdir(), "is not a file"),
        (_foreign, "not the database of a gateway"),
        (_broken, "damaged"),
        (_newer, "newer gateway"),
    ],
    ids=["text", "empty", "cut off", "missing", "folder", "foreign", "broken", "newer"],
)
def test_what_is_no_backup_is_not_restored(
    make: Callable[[Path, Path], object], words: str, store: Path, tmp_path: Path
) -> None:
    before = (store / "db.sqlite").read_bytes()
    assert command("backup", "--data-dir", store, tmp_path / "good").returncode == 0
    make(tmp_path / "bad", tmp_path / "good")
    done = command("restore", "--data-dir", store, tmp_path / "bad")
    assert done.returncode == 1, done.stdout
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert (store / "db.sqlite").read_bytes() == before
    assert [each.name for each in store.iterdir()] == ["db.sqlite"]


def test_a_damaged_store_can_be_replaced_and_is_kept(store: Path, tmp_path: Path) -> None:
    assert command("backup", "--data-dir", store, tmp_path / "good").returncode == 0
    (store / "db.sqlite").write_bytes(b"rubbish" * 3000)
    (store / "db.sqlite-wal").write_bytes(b"more rubbish")
    refused = command("backup", "--data-dir", store, tmp_path / "bad")
    assert refused.returncode == 1
    assert "not a SQLite database" in refused.stderr
    assert not (tmp_path / "bad").exists()
    assert command("restore", "--data-dir", store, tmp_path / "good").returncode == 0
    assert "ada" in command("users", "list", "--data-dir", store).stdout
    kept = sorted(store.glob("db.sqlite.2*"))
    assert kept[0].read_bytes() == b"rubbish" * 3000


def test_a_store_that_somebody_has_open_is_not_replaced(store: Path, tmp_path: Path) -> None:
    """A gateway of another data dir, with a --database-url."""
    assert command("backup", "--data-dir", store, tmp_path / "good").returncode == 0
    with contextlib.closing(sqlite3.connect(store / "db.sqlite")) as other:
        other.execute("SELECT count(*) FROM users").fetchall()
        done = command("restore", "--data-dir", store, tmp_path / "good")
    assert done.returncode == 1
    assert "open" in done.stderr
    assert rows(store / "db.sqlite", "SELECT name FROM users") == [("ada",)]


def test_an_existing_file_is_not_overwritten(store: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    done = command("backup", "--data-dir", store, tmp_path / "there")
    assert done.returncode == 1
    assert (tmp_path / "there").read_text() == "mine"
    done = command("backup", "--data-dir", store, tmp_path / "no" / "folder")
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_other_databases_have_their_own_tools(tmp_path: Path) -> None:
    url = ("--database-url", "postgresql://ada:secret@127.0.0.1:1/db")
    for name, tool in (("backup", "pg_dump"), ("restore", "pg_restore")):
        done = command(name, *url, "--data-dir", tmp_path / "data", tmp_path / "b")
        assert done.returncode == 1
        assert tool in done.stderr
        assert "secret" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = command("backup", "--data-dir", store, small / "b")
        assert done.returncode == 1
        assert "full" in done.stderr
        assert list(small.iterdir()) == []
        small.joinpath("data").mkdir()
        assert command("backup", "--data-dir", store, tmp_path / "good").returncode == 0
        done = command("restore", "--data-dir", small / "data", tmp_path / "good")
        assert done.returncode == 1
        assert "full" in done.stderr
        assert [each.name for each in small.joinpath("data").iterdir()] == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_word_is_needed(store: Path) -> None:
    done = command("backup", "--data-dir", store)
    assert done.returncode == 2
    assert "FILE is missing" in done.stderr
