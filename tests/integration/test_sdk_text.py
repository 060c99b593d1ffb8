"""Any text and any bytes that code and commands put out or are given, through SDK and command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsafespace import Sandbox
from tests.conftest import Gateway
from tests.integration.rest_support import Client

# What str.splitlines and its like take for the end of a line, and other odd characters.
ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\x00j\ufeffk\U0001f600l"
BINARY = "import os; os.write(1, bytes(range(256)) * 500 + b'\\xe2\\x80')"


@pytest.fixture(scope="module")
def sandbox(gateway: Gateway) -> Iterator[Sandbox]:
    with Sandbox(runtime="python", api_url=gateway.url, api_key=gateway.admin_key) as made:
        yield made


def command_line(gateway: Gateway, *arguments: str, **options: str) -> subprocess.CompletedProcess[bytes]:
    where = {"LLMSAFESPACE_API_URL": gateway.url, "LLMSAFESPACE_API_KEY": gateway.admin_key}
    env = {**os.environ, **where, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", **options}
    command = [sys.executable, "-m", "llmsafespace", *arguments]
    return subprocess.run(command, capture_output=True, env=env, timeout=120)


def test_every_character_comes_through_a_command(sandbox: Sandbox) -> None:
    command = ["python", "-X", "utf8", "-c", f"print({ODD!a}, end='')"]
    assert sandbox.run_command(command).stdout == ODD
    assert "".join(sandbox.stream_command(command)) == ODD
    background = sandbox.run_command(command, background=True)
    assert background.wait().stdout == ODD
    assert "".join(sandbox.attach(background.id)) == ODD


def test_every_character_comes_through_code(sandbox: Sandbox) -> None:
    execution = sandbox.run_code(f"print({ODD!a}, end='')\n{ODD!a}")
    assert (execution.stdout, execution.text) == (ODD, repr(ODD))
    assert "".join(sandbox.attach(execution.id)) == ODD


def test_bytes_that_are_no_text_are_replaced(sandbox: Sandbox) -> None:
    expected = (bytes(range(256)) * 500 + b"\xe2\x80").decode("utf-8", "replace")
    assert sandbox.run_command(["python", "-c", BINARY]).stdout == expected
    assert sandbox.run_command("head -c 300000 /dev/urandom; head -c 300000 /dev/urandom >&2").success


def test_a_line_of_input_ends_at_a_newline_alone(sandbox: Sandbox, gateway: Gateway) -> None:
    lines = ODD.replace("\x00", "")
    code = "print(ascii([input() for _ in range(2)]))"
    assert sandbox.run_code(code, stdin=f"{lines}\r\nsecond\n").stdout == f"{[lines, 'second']!a}\n"
    with Client(gateway.url, gateway.admin_key) as client:
        body = {"type": "code", "content": code, "stdin": f"{lines}\r\nsecond\n"}
        document = client.post(f"/sandboxes/{sandbox.id}/execute", json=body).json()
    assert document["stdout"] == f"{[lines, 'second']!a}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_the_command_line_prints_any_text(sandbox: Sandbox, gateway: Gateway, encoding: str) -> None:
    """What its terminal's encoding lacks is written as an escape."""
    command = ["exec", sandbox.id, "--", "python", "-X", "utf8", "-c", f"print({ODD!a}, end='')"]
    done = command_line(gateway, *command, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (0, ODD.encode(encoding, "backslashreplace")), done.stderr
    done = command_line(gateway, "exec", sandbox.id, "--", "python", "-c", BINARY, PYTHONIOENCODING=encoding)
    assert (done.returncode, len(done.stdout) > 100_000) == (0, True), done.stderr


def test_the_command_line_runs_text_and_refuses_what_is_none(gateway: Gateway, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_bytes(b"\xef\xbb\xbfprint('\xe2\x80\xa8')\r\nprint(2)")
    done = command_line(gateway, "run", str(script))
    assert (done.returncode, done.stdout) == (0, "\u2028\n2\n".encode()), done.stderr
    script.write_bytes(b"print('\xff')")
    done = command_line(gateway, "run", str(script))
    assert done.returncode == 3
    assert b"script.py is not UTF-8 text (byte 7" in done.stderr
