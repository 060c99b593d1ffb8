"""`keys create`, `list` and `revoke`, beside a store that is in use."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.commands.keys import expiry
from llmsafespace_gateway.configuration import UsageError
from llmsafespace_gateway.store import Store, sqlite_url
from tests.unit.commands_support import run


def main(arguments: list[str]) -> int:
    return run("keys", *arguments)


async def keys(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmsafespace_gateway", "keys", *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)


async def test_keys_are_made_and_revoked_while_the_gateway_runs(tmp_path: Path) -> None:
    store = await Store.open(sqlite_url(tmp_path))
    access = Access(store)
    await access.start()
    made = await keys(
        "create", "--data-dir", str(tmp_path), "--user", "ada", "--role", "developer", "--tenant", "acme"
    )
    assert made.returncode == 0, made.stderr
    text = made.stdout.removesuffix("\n")
    assert "\n" not in text
    ada = await access.authenticate(f"Bearer {text}")
    assert (ada.user, ada.tenant, ada.role) == ("ada", "acme", "developer")
    closed = asyncio.Event()
    access.on_revoked(ada.key_id, closed.set)
    revoked = await keys("revoke", ada.key_id, "--data-dir", str(tmp_path))
    assert (revoked.returncode, revoked.stdout) == (0, "")
    await asyncio.wait_for(closed.wait(), 20)
    await access.stop()
    await store.close()


def test_scopes_and_expiry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path / "new")]
    common = ["create", *where, "--user", "ada", "--role", "developer"]
    assert main([*common, "--scopes", "execute, sandboxes:read", "--expires", "30d", "--name", "ci"]) == 0
    text = capsys.readouterr().out.strip()
    assert main(["list", *where, "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["scopes"] == ["execute", "sandboxes:read"]
    assert (document["user"], document["role"], document["tenant"]) == ("ada", "developer", "default")
    assert document["expires_at"] is not None
    assert "hash" not in document
    assert main(["list", *where]) == 0
    table = capsys.readouterr().out
    assert document["id"] in table
    assert "active" in table
    assert text not in table
    assert main(["revoke", text, *where]) == 0  # the whole key does as well as its id
    capsys.readouterr()
    assert main(["list", *where, "--tenant", "default"]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["list", *where, "--tenant", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["create", "--role", "viewer"], "--user is needed"),
        (["create", "--user", "ada"], "--role is needed"),
        (["create", "--user", "ada", "--role", "boss"], "boss"),
        (["revoke"], "ID is missing"),
        (["revoke", "a", "b"], "'b'"),
        (["create", "--user", "ada", "--role", "viewer", "--scopes", "execute"], "beyond"),
        (["create", "--user", "ada", "--role", "viewer", "--scopes", "sing"], "known are"),
        (["create", "--user", "ada", "--role", "viewer", "--scopes", ","], "at least one"),
        (["create", "--user", "ada", "--role", "viewer", "--expires", "soon"], "say 30d"),
        (["create", "--user", "ada", "--role", "viewer", "--expires", "2001-01-01"], "past"),
        (["create", "--user", " ", "--role", "viewer"], "name"),
        (["create", "--user", "ada", "--role", "viewer", "--tenant", "a b"], "tenant"),
    ],
)
def test_misuse_says_what_to_do(
    arguments: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--data-dir", str(tmp_path / "none")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert hint in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "abc"]])
def test_a_gateway_that_is_not_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--data-dir", str(tmp_path / "none")]) == 1
    assert "--data-dir" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_conflicts_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data-dir", str(tmp_path)]
    assert main(["create", *where, "--user", "ada", "--role", "viewer"]) == 0
    assert main(["create", *where, "--user", "ada", "--role", "admin"]) == 1
    assert "--role viewer" in capsys.readouterr().err
    assert main(["revoke", "nonsense", *where]) == 1
    assert "keys list" in capsys.readouterr().err


def test_a_broken_store_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"this is no database" * 100)
    assert main(["list", "--data-dir", str(tmp_path)]) == 1
    assert "--data-dir" in capsys.readouterr().err


def test_the_url_of_the_store_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/other.sqlite\n")
    where = ["--data-dir", str(tmp_path / "none"), "--database-url-file", str(tmp_path / "url")]
    assert main(["create", *where, "--user", "ada", "--role", "viewer"]) == 0
    text = capsys.readouterr().out.strip()
    assert (tmp_path / "other.sqlite").exists()
    assert not (tmp_path / "none").exists()
    assert main(["list", *where, "--json"]) == 0
    assert [key["user"] for key in json.loads(capsys.readouterr().out)] == ["ada"]
    assert main(["revoke", text, *where]) == 0
    capsys.readouterr()
    assert main(["list", *where, "--database-url", "sqlite://"]) == 1
    assert "drop one" in capsys.readouterr().err
    (tmp_path / "url").unlink()
    assert main(["list", *where]) == 1
    assert "--database-url-file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["create", "--help"], ["list", "--help"], ["revoke", "--help"]]
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert told.count("--config") == 1
    assert ("--data-dir" in told) == (len(arguments) > 1)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("30d", 1000.0 + 30 * 86400),
        ("12h", 1000.0 + 12 * 3600),
        ("90s", 1090.0),
        ("2w", 1000.0 + 14 * 86400),
        ("1970-01-02", 86400.0),
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-02T02:00:00+02:00", 86400.0),
    ],
)
def test_expiry(text: str, moment: float) -> None:
    assert expiry(text, 1000.0) == moment


@pytest.mark.parametrize("text", ["", "d", "-3d", "0d", "1y", "30 days", "1970-01-01", "99999999999d"])
def test_no_expiry(text: str) -> None:
    with pytest.raises(UsageError):
        expiry(text, time.time())
