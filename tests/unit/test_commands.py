"""The gateway's command line: what is asked for is done, anything else is refused with what was meant."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from llmsafespace_gateway import configuration
from llmsafespace_gateway.app import GatewayApp
from tests.unit.commands_support import run

COMMAND = [sys.executable, "-m", "llmsafespace_gateway"]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "unknown command 'bogus'; llmsafespace-gateway --help"),
        (["key"], "did you mean keys?"),
        (["sevre"], "did you mean serve?"),
        (["keys", "craete"], "did you mean create?"),
        (["users", "lsit"], "did you mean list?"),
        (["keys"], "create, list, revoke"),
        (["serve", "now"], "'now'"),
        (["keys", "list", "ada"], "'ada'"),
        (["--prot", "1"], "did you mean --port?"),
        (["keys", "create", "--usr", "ada"], "did you mean --user?"),
        (["keys", "list", "--bogus"], "unknown option --bogus"),
        (["--port"], "--port: expected one argument"),
        (["--port", "eighty"], "port"),
    ],
    ids=" ".join,
)
def test_misuse_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1


def test_a_process_refuses_a_word_too(tmp_path: Path) -> None:
    """It starts no server."""
    done = process("bogus", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "data").exists()


# -- what is told --------------------------------------------------------------------------------------------


def test_the_version_is_the_distribution_s() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout.strip()) == (0, version("llmsafespace-gateway"))


def test_help_names_every_subcommand_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = capsys.readouterr().out
    for name in ("serve", "keys", "users"):
        assert f"\n{name}\n" in told
    for option in ("--port", "--data-dir", "--config", "--generate-config"):
        assert f"\n{option}" in told


def test_help_that_nobody_reads_on_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" --help-all | head -1', "-", *COMMAND], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr


# -- the configuration file ----------------------------------------------------------------------------------


def test_an_example_of_every_option_can_be_written_and_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "gateway.py"
    assert run("--generate-config", "--config", str(path)) == 0
    assert str(path) in capsys.readouterr().out
    text = path.read_text()
    for name, trait in GatewayApp.class_traits(config=True).items():
        if trait.this_class is GatewayApp:
            assert f"# c.GatewayApp.{name} = " in text
    assert not [line for line in text.splitlines() if line.startswith("c.")]
    app = GatewayApp()
    path.write_text(text.replace("# c.GatewayApp.port = 8080", "c.GatewayApp.port = 8123"))
    configuration.load(app, ["--config", str(path)], GatewayApp)
    assert app.port == 8123
    assert run("--generate-config", "--config", str(path)) == 1
    assert "8123" in path.read_text()
    assert "-y" in capsys.readouterr().err
    assert run("--generate-config", "-y", "--config", str(path)) == 0
    assert path.read_text() == text


def test_subcommands_take_the_gateway_s_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data dir of a configuration file is where the keys are made."""
    config = tmp_path / "gateway.json"
    config.write_text(json.dumps({"GatewayApp": {"data_dir": str(tmp_path / "data")}}))
    where = ("--config", str(config))
    assert run("keys", "create", *where, "--user", "ada", "--role", "viewer") == 0
    assert (tmp_path / "data" / "db.sqlite").exists()
    assert run("keys", "list", *where) == 0
    assert "ada" in capsys.readouterr().out
    config.write_text(json.dumps({"GatewayApp": {"data_dri": "x"}}))
    assert run("keys", "list", *where) == 1
    assert "did you mean data_dir?" in capsys.readouterr().err


# -- users ---------------------------------------------------------------------------------------------------


def test_users_are_listed_and_change_their_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--data-dir", str(tmp_path))
    for name, role, tenant in (
        ("root", "admin", "default"),
        ("ada", "admin", "default"),
        ("bob", "viewer", "t"),
    ):
        assert run("keys", "create", *where, "--user", name, "--role", role, "--tenant", tenant) == 0
    assert run("users", "role", *where, "--user", "ada", "--role", "viewer") == 0
    capsys.readouterr()
    assert run("users", "list", *where, "--json") == 0
    found = [(user["tenant"], user["name"], user["role"]) for user in json.loads(capsys.readouterr().out)]
    assert found == [("default", "ada", "viewer"), ("default", "root", "admin"), ("t", "bob", "viewer")]
    assert run("users", "list", *where, "--tenant", "t") == 0
    assert "ada" not in capsys.readouterr().out
    assert run("users", "role", *where, "--user", "root", "--role", "viewer") == 1
    assert "last admin" in capsys.readouterr().err
    assert run("users", "role", *where, "--user", "eve", "--role", "viewer") == 1
    assert "users list" in capsys.readouterr().err
