"""What /readyz says is wrong: each fault is made for real, and named."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmsafespace_gateway import readiness
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.readiness import Readiness
from llmsafespace_gateway.rest import system
from llmsafespace_gateway.services.base import Parts
from llmsafespace_gateway.services.system import SystemService
from llmsafespace_gateway.store import Store, sqlite_file, sqlite_url, users


class Backend:
    """A backend that answers, fails or hangs."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.hangs = False
        self.asked = 0

    async def runtimes(self) -> list[Any]:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails
        return []


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def ready(tmp_path: Path, sqlite_store: Store, backend: Any, monkeypatch: pytest.MonkeyPatch) -> Readiness:
    monkeypatch.setattr(readiness, "_FRESH", -1.0)
    monkeypatch.setattr(readiness, "_LOCKED", 0.1)
    monkeypatch.setattr(readiness, "WITHIN", 1.0)
    found = sqlite_file(sqlite_url(tmp_path))
    assert found is not None
    return Readiness(tmp_path, Path(found), sqlite_store, backend)


async def test_all_is_well(ready: Readiness, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert await ready.problems() == {}
    assert sorted(tmp_path.iterdir()) == before


async def test_nobody_is_told_what_only_admins_may_know(
    ready: Readiness, sqlite_store: Store, backend: Any, tmp_path: Path
) -> None:
    """The parts are named to anybody; paths and the words of others are for the log and for admins."""

    async def quarantined() -> list[Any]:
        return []

    backend.name, backend.quarantined = "local", quarantined
    backend.fails = ApiError("service_unavailable", "host db.internal, port 5432, user gateway")
    (tmp_path / "db.sqlite").rename(tmp_path / "elsewhere")
    none: Any = None
    service = SystemService(Parts(none, none, sqlite_store, backend, none, "python"), none)
    caller = SimpleNamespace(principal=SimpleNamespace(tenant="default"))
    call: Any = SimpleNamespace(readiness=ready, caller=caller, services=SimpleNamespace(system=service))
    with pytest.raises(ApiError) as refused:
        await system.ready(call)
    told = f"{refused.value.message} {refused.value.details}"
    assert refused.value.details == {"problems": ["backend", "database"]}
    assert not any(secret in told for secret in (str(tmp_path), "db.internal", "5432"))
    shown = (await system.system(call)).problems
    assert str(tmp_path) in shown["database"]
    assert "db.internal" in shown["backend"]


async def test_it_stops(ready: Readiness) -> None:
    ready.draining = True
    assert list(await ready.problems()) == ["draining"]


OTHER = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM tenants'); c.close()"


async def test_what_was_written_is_there_after_a_kill(
    ready: Readiness, sqlite_store: Store, tmp_path: Path
) -> None:
    """A look must not drop this process's locks: the next process that closes the file takes itself for the
    last one then, and removes the log into which this one goes on to write.
    """
    for number in range(3):
        assert await ready.problems() == {}
        subprocess.run([sys.executable, "-c", OTHER, tmp_path / "db.sqlite"], check=True)
        await users.ensure_tenant(sqlite_store, f"tenant-{number}")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("db.sqlite*"):
        shutil.copy(file, copy)
    with sqlite3.connect(copy / "db.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM tenants").fetchone() == (4,)


def _gone(folder: Path) -> None:
    (folder / "db.sqlite").unlink()


def _replaced(folder: Path) -> None:
    (folder / "db.sqlite").rename(folder / "old")
    shutil.copy(folder / "old", folder / "db.sqlite")


def _zeroed(folder: Path) -> None:
    size = (folder / "db.sqlite").stat().st_size
    with (folder / "db.sqlite").open("r+b") as file:
        file.write(bytes(size))


def _cut_off(folder: Path) -> None:
    os.truncate(folder / "db.sqlite", 0)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_gone, "is gone"),
        (_replaced, "was replaced"),
        (_zeroed, "not a database any more"),
        (_cut_off, "not a database any more"),
    ],
)
async def test_a_database_that_is_not_there_as_it_was(
    ready: Readiness, tmp_path: Path, fault: Callable[[Path], None], words: str
) -> None:
    fault(tmp_path)
    problems = await ready.problems()
    assert list(problems) == ["database"]
    assert words in problems["database"]


async def test_a_database_that_another_process_locks(ready: Readiness, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "db.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "is locked" in (await ready.problems())["database"]
    other.execute("ROLLBACK")
    other.close()
    assert await ready.problems() == {}


async def test_a_database_that_cannot_be_written(
    ready: Readiness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root no mode of a file is in the way: the connection is opened read-only."""
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda url, **more: connect(url.replace("mode=rw", "mode=ro"), **more)
    )
    assert "read-only" in (await ready.problems())["database"]


async def test_a_full_disk(ready: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "LEAST_FREE", 1 << 62)
    assert "is full" in (await ready.problems())["disk"]


LIMITED = """
import resource, sys
from pathlib import Path
from llmsafespace_gateway.readiness import disk_problem
print(disk_problem(Path(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
print(disk_problem(Path(sys.argv[1])))
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As with a quota: the numbers of the disk look well, and writing fails."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path], check=True, capture_output=True, text=True
    )
    before, after = done.stdout.splitlines()
    assert before == "None"
    assert str(tmp_path) in after
    assert list(tmp_path.iterdir()) == []


class Hanging:
    """A check whose disk does not answer until `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, *_: Any) -> str | None:
        self.threads.append(threading.current_thread())
        self.answers.wait(60)
        return None


@pytest.mark.parametrize(("part", "name"), [("disk", "disk_problem"), ("database", "sqlite_problem")])
async def test_a_disk_that_hangs_costs_one_thread_and_nobody_elses(
    ready: Readiness, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    hanging = Hanging()
    monkeypatch.setattr(readiness, name, hanging)
    monkeypatch.setattr(readiness, "WITHIN", 0.05)
    try:
        for _ in range(20):
            assert "no answer" in (await ready.problems())[part]
        (thread,) = hanging.threads
        assert thread.daemon  # it must not hold up the end of the process
        everybody = [asyncio.to_thread(time.sleep, 0.01) for _ in range(20)]
        await asyncio.wait_for(asyncio.gather(*everybody), 10)
    finally:
        hanging.answers.set()
    thread.join()
    monkeypatch.setattr(readiness, "WITHIN", 10.0)
    assert await ready.problems() == {}
    assert len(hanging.threads) == 2


async def test_a_check_that_fails_is_named(ready: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Path) -> str | None:
        raise ValueError("nobody thought of this")

    with monkeypatch.context() as patched:
        patched.setattr(readiness, "disk_problem", fails)
        assert await ready.problems() == {"disk": "ValueError"}
    assert await ready.problems() == {}


async def test_a_data_dir_that_is_gone(ready: Readiness, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    problems = await ready.problems()
    assert "is gone" in problems["disk"]
    assert "is gone" in problems["database"]


async def test_a_backend_that_fails_or_hangs(ready: Readiness, backend: Backend) -> None:
    backend.fails = ApiError("service_unavailable", "the API server does not answer")
    assert (await ready.problems())["backend"] == "the API server does not answer"
    backend.fails = ValueError("nobody thought of this")
    assert (await ready.problems())["backend"] == "ValueError"
    backend.fails, backend.hangs = None, True
    began = time.monotonic()
    assert "no answer" in (await ready.problems())["backend"]
    assert time.monotonic() - began < 5
    backend.hangs = False
    assert await ready.problems() == {}


async def test_many_who_ask_are_one_look(
    ready: Readiness, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_FRESH", 60.0)
    assert await asyncio.gather(*(ready.problems() for _ in range(100))) == [{}] * 100
    assert backend.asked == 1
