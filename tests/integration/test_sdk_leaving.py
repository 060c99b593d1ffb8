"""Who leaves the output of code or of a command ends it, in every way in which it can be left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmsafespace import AsyncSandbox, Sandbox, SandboxError
from tests.conftest import Gateway

LIMIT = 30
_numbers = itertools.count(700_000)


@pytest.fixture(scope="module")
def sandbox(gateway: Gateway) -> Iterator[Sandbox]:
    with Sandbox(runtime="python", api_url=gateway.url, api_key=gateway.admin_key) as made:
        yield made


class Sleeper:
    """A command and code that print, then sleep for a number of seconds by which the process is found."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.number = next(_numbers)
        self.command = f"echo begun; sleep {self.number}"
        self.code = f"import subprocess\nprint('begun')\nsubprocess.run(['sleep', '{self.number}'])"

    def runs(self) -> bool:
        """Whether it does."""
        return self._sandbox.run_command(["pgrep", "-fx", f"sleep {self.number}"]).success

    def wait(self, runs: bool) -> None:
        """Returns when it runs, or has ended."""
        deadline = time.monotonic() + LIMIT
        while self.runs() != runs:
            assert time.monotonic() < deadline, f"{'not begun' if runs else 'it still runs'}"
            time.sleep(0.1)


@pytest.fixture
def sleeper(sandbox: Sandbox) -> Iterator[Sleeper]:
    made = Sleeper(sandbox)
    yield made
    sandbox.run_command(["pkill", "-9", "-fx", f"sleep {made.number}"])


def by_break(output: Any) -> None:
    for _ in output:
        break


def by_break_of_events(output: Any) -> None:
    for event in output.events():
        if event.type == "stdout":
            break


def by_close(output: Any) -> None:
    next(output)
    output.close()


def by_close_of_events(output: Any) -> None:
    next(output.events())
    output.close()


def by_exception(output: Any) -> None:
    with contextlib.suppress(ZeroDivisionError), output:
        for _ in output:
            raise ZeroDivisionError


WAYS = [by_break, by_break_of_events, by_close, by_close_of_events, by_exception]


@pytest.mark.parametrize("what", ["command", "code"])
@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
def test_leaving(sandbox: Sandbox, sleeper: Sleeper, what: str, leave: Callable[[Any], None]) -> None:
    leave(getattr(sandbox, f"stream_{what}")(getattr(sleeper, what)))
    gc.collect()
    sleeper.wait(runs=False)


@pytest.mark.parametrize("how", ["run", "stream", "events"])
@pytest.mark.parametrize("what", ["command", "code"])
def test_a_cancelled_task(gateway: Gateway, sandbox: Sandbox, sleeper: Sleeper, what: str, how: str) -> None:
    async def work() -> None:
        ours = await AsyncSandbox.connect(sandbox.id, api_url=gateway.url, api_key=gateway.admin_key)
        text = getattr(sleeper, what)

        async def listen() -> None:
            if how == "run":
                await getattr(ours, f"run_{what}")(text)
            output = getattr(ours, f"stream_{what}")(text)
            async for _ in output if how == "stream" else output.events():
                pass

        task = asyncio.create_task(listen())
        await asyncio.to_thread(sleeper.wait, True)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(sleeper.wait, False)
        await ours.close()

    asyncio.run(work())


@pytest.mark.parametrize("what", ["command", "code"])
def test_left_just_before_the_sandbox_object_is_closed(
    gateway: Gateway, sandbox: Sandbox, sleeper: Sleeper, what: str
) -> None:
    async def work() -> None:
        ours = await AsyncSandbox.connect(sandbox.id, api_url=gateway.url, api_key=gateway.admin_key)
        async for _ in getattr(ours, f"stream_{what}")(getattr(sleeper, what)):
            break
        await ours.close()

    asyncio.run(work())
    sleeper.wait(runs=False)


@pytest.mark.parametrize("what", ["command", "code"])
def test_ctrl_c(gateway: Gateway, sandbox: Sandbox, sleeper: Sleeper, what: str) -> None:
    """Also where the process ends next."""
    script = (
        "import sys\nfrom llmsafespace import Sandbox\n"
        f"Sandbox.connect(sys.argv[1]).run_{what}(sys.argv[2])\n"
    )
    env = {**os.environ, "LLMSAFESPACE_API_URL": gateway.url, "LLMSAFESPACE_API_KEY": gateway.admin_key}
    command = [sys.executable, "-c", script, sandbox.id, getattr(sleeper, what)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        sleeper.wait(runs=True)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    finally:
        process.kill()
    sleeper.wait(runs=False)


def test_ctrl_c_of_the_command_line(gateway: Gateway, sandbox: Sandbox, sleeper: Sleeper) -> None:
    env = {**os.environ, "LLMSAFESPACE_API_URL": gateway.url, "LLMSAFESPACE_API_KEY": gateway.admin_key}
    command = [sys.executable, "-m", "llmsafespace", "exec", sandbox.id, "--", "sh", "-c", sleeper.command]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        sleeper.wait(runs=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
    finally:
        process.kill()
    sleeper.wait(runs=False)


@pytest.mark.parametrize("shell", ["trap '' INT; {}", "({}) & wait", "trap '' INT TERM; ({})"])
def test_a_command_that_an_interrupt_does_not_end(sandbox: Sandbox, sleeper: Sleeper, shell: str) -> None:
    with sandbox.stream_command(shell.format(sleeper.command)) as output:
        next(output)
    sleeper.wait(runs=False)


def test_a_command_has_time_to_put_things_in_order(sandbox: Sandbox, sleeper: Sleeper) -> None:
    name = f"tidy-{sleeper.number}"
    with sandbox.stream_command(f"trap 'sleep 0.3; touch {name}; exit' INT; {sleeper.command}") as output:
        next(output)
    sleeper.wait(runs=False)
    deadline = time.monotonic() + LIMIT
    while name not in [info.path.removeprefix("/workspace/") for info in sandbox.list_files()]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("what", ["command", "code"])
def test_what_is_detached_from_goes_on(sandbox: Sandbox, what: str) -> None:
    text = {
        "command": "echo a; sleep 1; echo b",
        "code": "import time\nprint('a'); time.sleep(1); print('b')",
    }
    output = getattr(sandbox, f"stream_{what}")(text[what])
    assert next(output) == "a\n"
    output.detach()
    assert "".join(sandbox.attach(output.id)) == "a\nb\n"


def test_leaving_what_was_attached_to_does_not_end_it(sandbox: Sandbox, sleeper: Sleeper) -> None:
    command = sandbox.run_command(sleeper.command, background=True)
    for output in (command.stream(), sandbox.attach(command.id)):
        with output:
            next(output)
    time.sleep(0.5)
    assert sleeper.runs()
    assert command.kill()
    sleeper.wait(runs=False)


def test_what_ended_is_left_alone(sandbox: Sandbox) -> None:
    output = sandbox.stream_command("echo a")
    assert list(output) == ["a\n"]
    output.close()
    assert output.end is not None
    assert output.end.end == "ok"


async def test_a_closed_sandbox_object_says_so(gateway: Gateway, sandbox: Sandbox) -> None:
    ours = await AsyncSandbox.connect(sandbox.id, api_url=gateway.url, api_key=gateway.admin_key)
    running = asyncio.create_task(ours.run_command("sleep 2"))
    await asyncio.sleep(0.5)
    await ours.close()
    with pytest.raises(SandboxError, match="closed here"):
        await running
