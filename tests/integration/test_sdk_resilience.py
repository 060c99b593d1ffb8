"""The gateway dies in mid-execution and comes back; the private gateway comes and goes with its process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmsafespace import Execution, Sandbox, embedded, kernel_stream, patience
from llmsafespace.events import Event, Stdout
from llmsafespace.messages import Message
from llmsafespace.subscription import Subscription
from tests.conftest import Gateway

COUNT = "import time\nfor i in range(60):\n    print(i, flush=True)\n    time.sleep(0.05)"


@pytest.fixture(params=[0.0, 66.0], ids=lambda age: f"{age:g}s")
def age(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make all connections this much older, for the SDK."""
    jumped = [0.0]
    monkeypatch.setattr(patience, "now", lambda: time.monotonic() + jumped[0])

    def jump() -> None:
        jumped[0] += request.param

    return jump


def run_over_a_killed_gateway(
    gateway: Gateway, sandbox: Sandbox, age: Callable[[], None]
) -> tuple[list[Event], Execution]:
    stream = sandbox.stream_code(COUNT)
    told: list[Event] = []
    killed = False
    for event in stream.events():
        told.append(event)
        if len(told) >= 5 and not killed:
            killed = True
            age()
            gateway.kill()
            gateway.start()
    return told, stream.execution


def test_a_killed_gateway_loses_and_repeats_nothing(own_gateway: Gateway, age: Callable[[], None]) -> None:
    key = own_gateway.admin_key
    with Sandbox(runtime="python", api_url=own_gateway.url, api_key=key) as sandbox:
        told, execution = run_over_a_killed_gateway(own_gateway, sandbox, age)
        numbers = [event.seq for event in told]
        assert numbers == sorted(set(numbers))
        assert execution.stdout == "".join(f"{number}\n" for number in range(60))
        assert execution.end == "ok"
        assert sandbox.run_code("i").text == "59"

        command = sandbox.stream_command("for i in $(seq 60); do echo $i; sleep 0.05; done")
        lines: list[str] = []
        for text in command:
            if not lines:
                age()
                own_gateway.kill()
                own_gateway.start()
            lines.append(text)
        assert "".join(lines) == "".join(f"{number}\n" for number in range(1, 61))


TICKS = """
import os, time
while not os.path.exists("enough"):
    print(time.time(), flush=True)
    time.sleep(0.05)
"""


def newest(told: list[Event]) -> float:
    """The last whole tick."""
    text = "".join(event.text for event in told[-6:] if isinstance(event, Stdout))
    return max(map(float, text.split("\n")[1:-1]), default=0.0)


def test_planned_restarts_lose_and_repeat_nothing(own_gateway: Gateway, age: Callable[[], None]) -> None:
    """The gateway drains: websockets are closed with a code, requests end; twice in a row."""
    with Sandbox(runtime="python", api_url=own_gateway.url, api_key=own_gateway.admin_key) as sandbox:
        code, command = sandbox.stream_code(TICKS), sandbox.stream_command("echo 0; sleep 4; echo 1")
        ticks, lines = code.events(), iter(command)
        told, printed = [next(ticks)], [next(lines)]
        for _ in range(2):
            age()
            assert own_gateway.stop() == 0
            own_gateway.start()
            serves = time.time()
            while newest(told) < serves:  # until what was printed since has come
                told.append(next(ticks))
        sandbox.files.write("enough", "")
        told += list(ticks)
        numbers = [event.seq for event in told]
        assert numbers == sorted(set(numbers))
        assert code.execution.end == "ok"
        assert "".join([*printed, *lines]) == "0\n1\n"


def test_code_that_is_sent_into_the_gap_runs_once(own_gateway: Gateway) -> None:
    with Sandbox(runtime="python", api_url=own_gateway.url, api_key=own_gateway.admin_key) as sandbox:
        sandbox.run_code("runs = 0")
        own_gateway.kill()
        stream = sandbox.stream_code("runs += 1\nprint(runs)")
        own_gateway.start()
        assert "".join(stream) == "1\n"
        assert sandbox.run_code("runs").text == "1"


PRINTS_FOR_EVER = """
import threading, time
def tick():
    while True:
        print("tick", flush=True)
        time.sleep(0.02)
threading.Thread(target=tick, daemon=True).start()
print("\\nfirst\\n", end="")  # one write: the thread prints between two of them, and within a line
time.sleep(0.5)
print("\\nlast\\n", end="")
6 * 7
"""


def test_an_end_that_is_lost_while_a_thread_keeps_printing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reply and idle fall into a gap. All output up to the end is there, and the call returns."""
    take = Subscription.put

    def put(self: Subscription, message: Message) -> None:
        if message.header().msg_type in ("execute_reply", "status"):
            self.put_gap(1, message.seq + 1)
        else:
            take(self, message)

    monkeypatch.setattr(Subscription, "put", put)
    monkeypatch.setattr(kernel_stream, "_LOOK_EVERY", 0.3)
    with Sandbox(runtime="python", api_url=gateway.url, api_key=gateway.admin_key) as sandbox:
        execution = sandbox.run_code(PRINTS_FOR_EVER, timeout=60)
        assert execution.end == "ok"
        assert execution.text == "42"
        lines = execution.stdout.split("\n")
        assert (lines.count("first"), lines.count("last")) == (1, 1), execution.stdout


EMBEDDED = """
import os
from llmsafespace import Sandbox
from llmsafespace import embedded
sandbox = Sandbox(runtime="python")
print(sandbox.run_code("1 + 1").text, flush=True)
other = Sandbox(runtime="python")
print(other.run_code("2 + 2").text, embedded.endpoint().socket, embedded._gateway._process.pid, flush=True)
if os.environ.get("DIE"):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("die", ["", "yes"])
def test_embedded(die: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_root: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(data_root))  # short, for the socket's path
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("LLMSAFESPACE_API")
    }
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "DIE": die, "TMPDIR": str(data_root)},
        timeout=170,
    )
    assert done.stdout.startswith("2\n4 "), done.stderr
    _, socket, pid = done.stdout.split("\n")[1].split(" ")
    deadline = time.monotonic() + 40
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    embedded.sweep()
    assert not Path(socket).parent.exists()
