"""Errors that programs can tell apart, by class and by `details.kind`, not by their text."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmsafespace import (
    AsyncSandbox,
    DirectoryNotEmpty,
    FileExists,
    FileNotFound,
    FilePermissionDenied,
    InvalidRequest,
    IsADirectory,
    MissingPath,
    NotADirectory,
    NotFound,
    Sandbox,
    SandboxEnded,
    SandboxError,
)
from tests.conftest import Gateway
from tests.integration.rest_support import Client

ANY_BYTES = bytes(range(256)) * 8 + b"\xe2\x80"


@pytest.fixture(scope="module")
def sandbox(gateway: Gateway) -> Iterator[Sandbox]:
    with Sandbox(runtime="python", api_url=gateway.url, api_key=gateway.admin_key) as made:
        made.run_command("mkdir -p folder/full empty closed; touch file folder/full/x; chmod 0 closed")
        yield made


NO_FOLDER = (NotADirectory, NotADirectoryError, errno.ENOTDIR)
CASES: dict[str, tuple[Callable[[Sandbox], object], type[SandboxError], type[OSError], int]] = {
    "read a folder": (lambda box: box.files.read("folder"), IsADirectory, IsADirectoryError, errno.EISDIR),
    "write to a folder": (
        lambda box: box.files.write("folder", "x"),
        IsADirectory,
        IsADirectoryError,
        errno.EISDIR,
    ),
    "download a folder": (lambda box: box.download_file("folder"), IsADirectory, IsADirectoryError, 21),
    "read what is missing": (lambda box: box.files.read("none"), FileNotFound, FileNotFoundError, 2),
    "stat what is missing": (lambda box: box.files.stat("none"), FileNotFound, FileNotFoundError, 2),
    "list what is missing": (lambda box: box.files.list("none"), FileNotFound, FileNotFoundError, 2),
    "remove what is missing": (lambda box: box.files.remove("none"), FileNotFound, FileNotFoundError, 2),
    "move what is missing": (lambda box: box.files.rename("none", "x"), FileNotFound, FileNotFoundError, 2),
    "read beneath a file": (
        lambda box: box.files.read("file/x"),
        NotADirectory,
        NotADirectoryError,
        errno.ENOTDIR,
    ),
    "write beneath a file": (
        lambda box: box.files.write("file/x", ""),
        NotADirectory,
        NotADirectoryError,
        20,
    ),
    "list a file": (lambda box: box.files.list("file"), *NO_FOLDER),
    "a folder in place of a file": (
        lambda box: box.files.mkdir("file"),
        NotADirectory,
        NotADirectoryError,
        20,
    ),
    "move onto a file": (
        lambda box: box.files.rename("folder", "file"),
        FileExists,
        FileExistsError,
        errno.EEXIST,
    ),
    "remove a full folder": (lambda box: box.files.remove("folder"), DirectoryNotEmpty, OSError, 39),
    "a program that is missing": (
        lambda box: box.run_command("true", cwd="/none"),
        MissingPath,
        FileNotFoundError,
        errno.ENOENT,
    ),
    "a working folder that is a file": (
        lambda box: box.run_command("true", cwd="/etc/hostname/x", background=True),
        NotADirectory,
        NotADirectoryError,
        errno.ENOTDIR,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_errors_of_the_system(sandbox: Sandbox, case: tuple[Any, type, type[OSError], int]) -> None:
    act, kind, pythons, number = case
    with pytest.raises(kind) as raised:
        act(sandbox)
    error: Any = raised.value
    assert type(error) is kind
    assert isinstance(error, pythons)
    assert isinstance(error, (InvalidRequest, NotFound))
    assert (error.errno, error.details["kind"]) == (number, errno.errorcode[number])
    assert str(error) == error.message
    assert error.filename


def test_what_the_sandboxes_user_may_not_do(sandbox: Sandbox) -> None:
    """Not everywhere are there users that may not do everything."""
    denied = sandbox.run_command("touch closed/x").success is False
    if not denied:
        pytest.skip("here the sandbox's user may do everything")
    with pytest.raises(FilePermissionDenied) as raised:
        sandbox.files.write("closed/x", "x")
    assert isinstance(raised.value, PermissionError)
    assert raised.value.errno in (errno.EACCES, errno.EPERM)


def test_a_program_that_cannot_run_is_named_over_rest(gateway: Gateway, sandbox: Sandbox) -> None:
    with Client(gateway.url, gateway.admin_key) as client:
        for argv, kind in ((["no-such-program"], "ENOENT"), (["/etc/passwd"], "EACCES")):
            answer = client.post(f"/sandboxes/{sandbox.id}/commands", json={"argv": argv})
            assert answer.status_code == 400
            assert answer.json()["error"]["details"] == {"program": argv[0], "kind": kind}


@pytest.mark.parametrize("command", ["no-such-program", ["no-such-program", "a b"]], ids=["line", "list"])
def test_a_missing_program_is_the_same_in_front_and_behind(sandbox: Sandbox, command: Any) -> None:
    foreground = sandbox.run_command(command)
    background = sandbox.run_command(command, background=True).wait()
    assert (foreground.exit_code, foreground.end) == (background.exit_code, background.end) == (127, "error")
    assert foreground.stderr == background.stderr
    output = sandbox.stream_command(command)
    output.finish()
    assert output.end is not None
    assert (output.end.exit_code, output.end.error, output.execution.error) == (127, None, None)


def test_arguments_arrive_as_they_are(sandbox: Sandbox) -> None:
    odd = ["a b", "", "'", '"', "$HOME", "*", "\n", "é", "-x", "\\"]
    command = ["python", "-X", "utf8", "-c", "import sys; print(ascii(sys.argv[1:]))", *odd]
    for result in (sandbox.run_command(command), sandbox.run_command(command, background=True).wait()):
        assert result.stdout == f"{odd!a}\n"


@pytest.mark.parametrize("data", [ANY_BYTES, bytearray(ANY_BYTES), b"", b"text"], ids=len)
def test_bytes_stay_bytes_in_the_input_of_commands(sandbox: Sandbox, data: bytes) -> None:
    command = "cat > got"
    sandbox.run_command(command, stdin=data)
    assert sandbox.files.read("got") == data
    sandbox.run_command(command, stdin=data, background=True).wait()
    assert sandbox.files.read("got") == data
    running = sandbox.run_command(command, background=True)
    running.send_stdin(data)
    running.send_stdin("é", eof=True)
    running.wait()
    assert sandbox.files.read("got") == data + "é".encode()


def test_bytes_stay_bytes_over_the_command_line(gateway: Gateway, sandbox: Sandbox) -> None:
    env = {**os.environ, "LLMSAFESPACE_API_URL": gateway.url, "LLMSAFESPACE_API_KEY": gateway.admin_key}
    command = [
        sys.executable,
        "-m",
        "llmsafespace",
        "exec",
        "--stdin",
        sandbox.id,
        "--",
        "sh",
        "-c",
        "cat > got",
    ]
    done = subprocess.run(command, input=ANY_BYTES, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sandbox.files.read("got") == ANY_BYTES


def test_input_that_is_none(sandbox: Sandbox, gateway: Gateway) -> None:
    with pytest.raises(InvalidRequest, match="stdin must be text or bytes, got StringIO"):
        sandbox.run_command("cat", stdin=io.StringIO("x"))  # type: ignore[call-overload]
    with Client(gateway.url, gateway.admin_key) as client:
        body = {"command": "cat", "stdin": "no base64!", "stdinEncoding": "base64"}
        answer = client.post(f"/sandboxes/{sandbox.id}/commands", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        body = {"content": "1", "stdin": "eA==", "stdinEncoding": "base64"}
        assert client.post(f"/sandboxes/{sandbox.id}/execute", json=body).status_code == 400


CALLS: dict[str, Callable[[AsyncSandbox], Any]] = {
    "run_command": lambda box: box.run_command("sleep 60"),
    "stream_command": lambda box: box.stream_command("sleep 60").finish(),
    "run_code": lambda box: box.run_code("import time; time.sleep(60)"),
    "stream_code": lambda box: box.stream_code("import time; time.sleep(60)").finish(),
    "install": lambda box: box.commands.finish(box.commands.stream("sleep 60")),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_sandbox_that_ends_under_a_call(
    gateway: Gateway, call: Callable[[AsyncSandbox], Any]
) -> None:
    where: dict[str, Any] = {"api_url": gateway.url, "api_key": gateway.admin_key}
    async with AsyncSandbox(runtime="python", **where) as made:
        other = await AsyncSandbox.connect(made.id, **where)
        running = asyncio.ensure_future(call(made))
        await asyncio.sleep(1)
        assert await other.terminate()
        with pytest.raises(SandboxEnded) as raised:
            await asyncio.wait_for(running, 30)
        assert raised.value.end == "terminated"


def test_a_background_command_whose_sandbox_ends(gateway: Gateway) -> None:
    where: dict[str, Any] = {"api_url": gateway.url, "api_key": gateway.admin_key}
    with Sandbox(runtime="python", **where) as made:
        command = made.run_command("sleep 60", background=True)
        ending = threading.Timer(1, lambda: Sandbox.connect(made.id, **where).terminate())
        ending.start()
        with pytest.raises(SandboxEnded):
            command.wait()
        ending.join()
        with pytest.raises(SandboxEnded):
            made.run_code("1")
        with pytest.raises(SandboxEnded):
            made.files.read("x")
