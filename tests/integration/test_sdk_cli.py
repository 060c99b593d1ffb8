"""The command line against a real gateway."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmsafespace import cli
from tests.conftest import Gateway


@pytest.fixture(autouse=True)
def environment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSAFESPACE_API_URL", gateway.url)
    monkeypatch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)


def typed(text: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(text.encode()))


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, matplotlib.pyplot as plt\n"
        "print(os.environ['MODE']); print('err', file=sys.stderr)\n"
        "plt.plot([1]); plt.show()\n6 * 7\n"
    )
    pictures = tmp_path / "pictures"
    arguments = ["--runtime", "python", "--env", "MODE=test", "--output-dir", str(pictures)]
    assert cli.main(["run", *arguments, str(script)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("test\n")
    assert told.out.endswith("42\n")
    assert "err\n" in told.err
    assert [path.name for path in pictures.iterdir()] == ["output-1.png"]
    monkeypatch.setattr(sys, "stdin", typed("print('x')\n1 / 0"))
    assert cli.main(["run", "--runtime", "python", "-"]) == 1
    told = capsys.readouterr()
    assert told.out == "x\n"
    assert "ZeroDivisionError" in told.err
    monkeypatch.setattr(sys, "stdin", typed("while True: pass"))
    assert cli.main(["run", "--runtime", "python", "--timeout", "0.5", "-"]) == 1
    assert "ExecutionTimeout" in capsys.readouterr().err


def test_sandboxes_exec_and_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandboxes", "create", "--runtime", "python"]) == 0
    sandbox_id = capsys.readouterr().out.strip()
    assert sandbox_id.startswith("sb-")
    assert cli.main(["sandboxes", "list", "--state", "running"]) == 0
    assert sandbox_id in capsys.readouterr().out
    assert cli.main(["sandboxes", "list", "--json"]) == 0
    assert sandbox_id in [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]

    local = tmp_path / "data.csv"
    local.write_bytes(b"1,2\n" * 100_000)
    assert cli.main(["cp", str(local), f"{sandbox_id}:"]) == 0
    assert cli.main(["cp", f"{sandbox_id}:data.csv", str(tmp_path / "back")]) == 0
    assert (tmp_path / "back").read_bytes() == local.read_bytes()
    assert capsys.readouterr() == ("", "")

    assert cli.main(["exec", sandbox_id, "--", "python", "-c", "import sys; print('a b'); sys.exit(3)"]) == 3
    assert capsys.readouterr().out == "a b\n"
    assert cli.main(["exec", sandbox_id, "--", "sh", "-c", "kill -9 $$"]) == 137
    assert cli.main(["sandboxes", "delete", sandbox_id]) == 0
    assert cli.main(["sandboxes", "delete", sandbox_id, "sb-nothing"]) == 1
    capsys.readouterr()
    assert cli.main(["exec", sandbox_id, "--", "true"]) == 3
    assert "has ended" in capsys.readouterr().err


def test_as_a_module(gateway: Gateway) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmsafespace", "run", "--runtime", "bash", "-"],
        input="echo $((6 * 7))\nfalse\n",
        capture_output=True,
        text=True,
        env=os.environ.copy(),
        timeout=120,
    )
    assert "42" in done.stdout, done.stderr
