"""The gateway dies in mid-execution and comes back; the private gateway comes and goes with its process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from llmsafespace import Execution, Sandbox, embedded
from llmsafespace.events import Event
from tests.conftest import Gateway

COUNT = "import time\nfor i in range(60):\n    print(i, flush=True)\n    time.sleep(0.05)"


def run_over_a_killed_gateway(gateway: Gateway, sandbox: Sandbox) -> tuple[list[Event], Execution]:
    stream = sandbox.stream_code(COUNT)
    told: list[Event] = []
    killed = False
    for event in stream.events():
        told.append(event)
        if len(told) >= 5 and not killed:
            killed = True
            gateway.kill()
            gateway.start()
    return told, stream.execution


def test_a_killed_gateway_loses_and_repeats_nothing(own_gateway: Gateway) -> None:
    key = own_gateway.admin_key
    with Sandbox(runtime="python", api_url=own_gateway.url, api_key=key) as sandbox:
        told, execution = run_over_a_killed_gateway(own_gateway, sandbox)
        numbers = [event.seq for event in told]
        assert numbers == sorted(set(numbers))
        assert execution.stdout == "".join(f"{number}\n" for number in range(60))
        assert execution.end == "ok"
        assert sandbox.run_code("i").text == "59"

        command = sandbox.stream_command("for i in $(seq 60); do echo $i; sleep 0.05; done")
        lines: list[str] = []
        for text in command:
            if not lines:
                own_gateway.kill()
                own_gateway.start()
            lines.append(text)
        assert "".join(lines) == "".join(f"{number}\n" for number in range(1, 61))


def test_code_that_is_sent_into_the_gap_runs_once(own_gateway: Gateway) -> None:
    with Sandbox(runtime="python", api_url=own_gateway.url, api_key=own_gateway.admin_key) as sandbox:
        sandbox.run_code("runs = 0")
        own_gateway.kill()
        stream = sandbox.stream_code("runs += 1\nprint(runs)")
        own_gateway.start()
        assert "".join(stream) == "1\n"
        assert sandbox.run_code("runs").text == "1"


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
