"""`check`: a line for each part, with the next step, and an exit status that scripts can use."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.local import host
from llmsafespace_gateway.backends.local.limits import NONE
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.commands import check
from llmsafespace_gateway.data_dir import DataDir
from llmsafespace_gateway.errors import ApiError
from tests.unit.commands_support import run

PARTS = {
    "configuration",
    "isolation",
    "users",
    "cgroups",
    "data dir disk",
    "runtimes disk",
    "data dir",
    "port",
    "database",
    "package index",
}


@pytest.fixture(autouse=True)
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request leaves the machine."""
    monkeypatch.setattr(check, "_unreachable", lambda url: None)


def found(capsys: pytest.CaptureFixture[str], status: int, *options: str) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    port = () if "--port" in options else ("--port", "0")
    assert run("check", "--json", *port, *options) == status
    return {each["part"]: each for each in json.loads(capsys.readouterr().out)}


def test_a_real_process_tells_of_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmsafespace_gateway", "check", "--port", "0", "--json"]
    command += ["--data-dir", str(tmp_path / "data"), "--runtimes-dir", str(tmp_path)]
    environment = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    told = {each["part"]: each for each in json.loads(done.stdout)}
    assert set(told) in (PARTS, PARTS - {"users", "cgroups"}), done.stderr
    assert told["package index"]["state"] == "fail"  # and there is no runtime yet
    assert "not reachable" in told["package index"]["message"]
    assert done.returncode == 1
    assert not (tmp_path / "data").exists()
    assert all(each["advice"] for each in told.values() if each["state"] == "warn")


def test_lines_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert run("check", "--data-dir", str(tmp_path), "--port", port) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("fail  port ") and "in use" in line]
    assert [line for line in lines if line.startswith("ok    data dir ")]


def test_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--data-dir", str(tmp_path))
    assert "first start" in found(capsys, 0, *where)["database"]["message"]
    assert run("keys", "create", *where, "--user", "ada", "--role", "admin") == 0
    assert found(capsys, 0, *where)["database"]["state"] == "ok"
    (tmp_path / "db.sqlite").write_bytes(b"rubbish" * 3000)
    told = found(capsys, 1, *where)["database"]
    assert told["state"] == "fail"
    assert "restore" in told["advice"]
    nobody = ("--database-url", "postgresql://nobody:secret@127.0.0.1:1/none")
    told = found(capsys, 1, *where, *nobody)["database"]
    assert told["state"] == "fail"
    assert "secret" not in told["message"]


def test_a_data_dir_in_use_and_its_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        held = DataDir.take(str(tmp_path), f"http://127.0.0.1:{port}")
        told = found(capsys, 0, "--data-dir", str(tmp_path), "--port", str(port))
        held.release()
    assert f"process {os.getpid()}" in told["data dir"]["message"]
    assert told["port"]["state"] == "ok"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the look left nothing locked
    os.close(descriptor)


def test_isolation_that_does_not_work_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*given: object) -> None:
        raise host._impossible("setting up uid map: Permission denied. User namespaces are off: sysctl")

    monkeypatch.setattr(host, "find", none)
    told = found(capsys, 1, "--data-dir", str(tmp_path))
    assert told["isolation"]["state"] == "fail"
    assert "uid map" in told["isolation"]["message"] + told["isolation"]["advice"]
    assert "sysctl" in told["isolation"]["advice"]


def test_no_cgroups_is_a_warning(tmp_path: Path) -> None:
    here = Host(data_dir=tmp_path, python="", bwrap="bwrap", is_root=False, hierarchy=NONE)
    told = check._cgroups(here)
    assert told.state == "warn"
    assert "memory" in told.message
    assert "Delegate" in told.advice
    assert check._users(here).state == "warn"


@pytest.mark.parametrize(("status", "problem"), [(404, None), (403, "403"), (503, "503")])
def test_an_index_that_answers(status: int, problem: str | None) -> None:
    from urllib.error import HTTPError

    def open_url(request: Any, timeout: float) -> Any:
        raise HTTPError(request.full_url, status, "", None, None)  # type: ignore[arg-type]

    told = REAL_UNREACHABLE("https://index.example/simple", open_url)
    assert (told is None) if problem is None else (told is not None and problem in told)


REAL_UNREACHABLE = check._unreachable


def test_a_driver_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """For the gateway and its commands alike."""
    program = (
        "import sys; sys.modules['psycopg'] = None; "
        "from llmsafespace_gateway.app import main; main(sys.argv[1:])"
    )
    url = ("--data-dir", str(tmp_path), "--database-url", "postgresql://ada@127.0.0.1:1/db")
    for arguments in (("--port", "0"), ("keys", "list"), ("check", "--port", "0")):
        command = [sys.executable, "-c", program, *arguments, *url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "pip install 'psycopg[binary]'" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_a_database_of_another_kind_is_refused(tmp_path: Path) -> None:
    from llmsafespace_gateway.store import Store

    with pytest.raises(ApiError, match="SQLite or PostgreSQL"):
        Store.unopened("mysql://ada@127.0.0.1/db")
