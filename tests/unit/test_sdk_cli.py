"""The command line's own decisions."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from llmsafespace import Result, cli
from llmsafespace.cli.run import save_pictures


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["sandboxes", "list"], ["exec"], ["cp"], ["jupyter", "install"], ["jupyter", "list"]],
)
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    assert stop.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["run"], ["run", "x", "--timeout", "-1"], ["run", "x", "--env", "=v"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "/nowhere/x.py"], "/nowhere/x.py: No such file"),
        (["cp", "a", "b"], "one of the two must be ID:PATH"),
        (["cp", "sb-1:a", "sb-2:b"], "one of the two must be ID:PATH"),
        (["sandboxes", "list", "--url", "http://127.0.0.1:9"], "LLMSAFESPACE_API_KEY"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMSAFESPACE_API_KEY", raising=False)
    assert cli.main(arguments) in (1, 3)
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_create_wants_a_gateway_that_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMSAFESPACE_API_KEY", raising=False)
    monkeypatch.delenv("LLMSAFESPACE_API_URL", raising=False)
    assert cli.main(["sandboxes", "create"]) == 3
    assert "LLMSAFESPACE_API_URL" in capsys.readouterr().err


def test_pictures_are_saved(tmp_path: Path) -> None:
    picture = base64.b64encode(b"PNG").decode()
    results = [
        Result({"text/plain": "no"}),
        Result({"image/png": picture}),
        Result({"image/svg+xml": "<svg/>"}),
    ]
    saved = save_pictures(results, tmp_path / "new")
    assert [path.name for path in saved] == ["output-1.png", "output-2.svg"]
    assert saved[0].read_bytes() == b"PNG"


def test_the_sdk_is_quick_to_import_and_alone() -> None:
    code = (
        "import sys, llmsafespace; "
        "others = {'llmsafespace_gateway', 'llmsafespace_agent', 'tornado', 'zmq', 'tqdm'}; "
        "print([name for name in sys.modules if name.partition('.')[0] in others])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
