"""Agent and code have a sandbox each: what code can see of its agent, and what it can do to it.

Also run as an ordinary user (see test_local_user).
"""

import asyncio
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from llmsafespace_gateway.backends.base import Resources
from llmsafespace_gateway.backends.runtimes.prepared import WORKER, PreparedRuntime
from llmsafespace_gateway.backends.runtimes.runtimes import Runtimes, default_cache_dir
from llmsafespace_protocol.requests import ById, CommandStart


def _load(name: str) -> Any:
    """A file beside this one, also where the tests are no package."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found is not None
    assert found.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(found))
    found.loader.exec_module(module)
    return module


support, agent = _load("local_support"), _load("test_local_agent")
pytestmark = pytest.mark.asyncio(loop_scope="module")  # the backend's own loop: it hears of ends there
MIB = support.MIB


class Apart(Runtimes):
    """Runtimes with a worker: where they have one of themselves, this is no longer needed."""

    async def resolve(self, runtime: str) -> tuple[PreparedRuntime, tuple[str, ...]]:
        found, warnings = await super().resolve(runtime)
        worker = (*found.agent_argv[:-1], WORKER)
        return msgspec.structs.replace(found, worker_argv=worker), warnings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[Any]:
    """A backend whose sandboxes are real ones."""
    runtimes = Apart(default_cache_dir(dict(os.environ), Path.home()))
    async with support.fresh(runtimes=runtimes) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def box(backend: Any, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A bound sandbox."""
    name = "sb-" + "".join(filter(str.isalnum, request.node.name))[:60]
    await backend.claim(agent.spec(name, resources=Resources(cpu=1.0, memory=512 * MIB, storage=256 * MIB)))
    await agent.bind(backend, name)
    yield name
    await backend.destroy(name)


def firsts(backend: Any, box: str) -> list[int]:
    """Process 1 of the code's sandbox and of its agent's, as the host numbers them."""
    lines = (backend._registry.get(box).folder / "first").read_text().splitlines()
    return [int(line.split()[0]) for line in lines]


def state_of(pid: int) -> dict[str, str]:
    """What /proc says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def ran(backend: Any, box: str, code: str) -> Any:
    """What code prints as JSON."""
    end, out = await agent.execute(backend, box, os.urandom(4).hex(), f"import json, os\n{code}")
    assert end == "ok", out
    return json.loads(out)


PROCESSES = """
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try: found[pid] = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ")
    except OSError: pass
print(json.dumps(found))
"""


async def test_no_process_of_the_agent_is_seen(backend: Any, box: str) -> None:
    found = await ran(backend, box, PROCESSES)
    assert "/inside/worker" in found["1"]
    assert not [line for line in found.values() if line.rstrip().endswith("/llmsafespace/agent")]
    code, its = firsts(backend, box)
    for space in ("pid", "mnt", "ipc", "net", "user"):
        assert os.readlink(f"/proc/{code}/ns/{space}") != os.readlink(f"/proc/{its}/ns/{space}")


async def test_both_are_confined_alike(backend: Any, box: str) -> None:
    """The agent has the code's filter and no more rights; a kernel and a command are as process 1."""
    shown = "print(json.dumps([l for l in open('/proc/self/status') if l.split(':')[0] in NAMES]))"
    names = ("NoNewPrivs", "CapBnd", "CapEff", "Seccomp")
    kernel = dict(line.strip().split(":\t") for line in await ran(backend, box, f"NAMES={names}\n{shown}"))
    for pid in firsts(backend, box):
        found = state_of(pid)
        assert {name: found[name] for name in names} == kernel
    assert (kernel["NoNewPrivs"], kernel["Seccomp"], int(kernel["CapBnd"], 16)) == ("1", "2", 0)


async def test_journals_and_sockets_of_the_agent_are_out_of_reach(backend: Any, box: str) -> None:
    assert await ran(backend, box, "print(json.dumps(sorted(os.listdir('/run/llmsafespace'))))") == [
        "kernels"
    ]
    _, its = firsts(backend, box)
    if os.geteuid() == 0:
        assert "journal" in os.listdir(f"/proc/{its}/root/run/llmsafespace")


EVERYBODY = """
import subprocess, time
done = [subprocess.run(c, shell=True, capture_output=True).returncode
        for c in ("renice 19 -u $(id -u)", "ionice -c 3 -u $(id -u)", "renice 19 -p 1", "chrt -i -p 0 1")]
try: os.kill(1, 9)
except OSError: pass
print(json.dumps(done))
"""


async def test_acts_on_everybody_leave_both_alive(backend: Any, box: str) -> None:
    pids = firsts(backend, box)
    before = [(os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)) for pid in pids]
    await ran(backend, box, EVERYBODY)
    command = CommandStart("c", command="kill -9 -1; sleep 100")
    await call(backend, box, "commands.start", command)
    assert [(os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)) for pid in pids] == before
    await support.eventually(lambda: alive(backend, box))
    assert [lives(pid) for pid in pids] == [True, True]


async def call(backend: Any, box: str, method: str, params: Any) -> Any:
    """A request to the agent."""
    stream = await backend.dial(box, agent.OpenRpc())
    await agent.opened(stream)
    client = agent.AgentClient(stream)
    try:
        return await client.call(method, params)
    finally:
        client.close()


async def alive(backend: Any, box: str) -> bool:
    """Whether a kernel answers (its first one may have been killed)."""
    try:
        await call(backend, box, "contexts.restart", ById("main"))
        done = await agent.execute(backend, box, os.urandom(4).hex(), "print(1)")
        return bool(done[1] == "1\n")
    except Exception:
        return False


def lives(pid: int) -> bool:
    """Whether a process is there, and no corpse."""
    try:
        return state_of(pid)["State"][0] not in "ZX"
    except OSError:
        return False


LIMITS = """
import resource
done = []
for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
    for pid in (1, 2):
        try: resource.prlimit(pid, kind, (8, 8)); done.append(pid)
        except (OSError, ValueError): pass
print(json.dumps(1 in done))
"""


async def test_limits_of_the_first_processes_stay(backend: Any, box: str) -> None:
    before = [Path(f"/proc/{pid}/limits").read_text() for pid in firsts(backend, box)]
    assert await ran(backend, box, LIMITS) is False
    assert [Path(f"/proc/{pid}/limits").read_text() for pid in firsts(backend, box)] == before
    assert (await agent.status(backend, box)).state == "bound"


START = """
import threading
reading, writing = os.pipe()
def load():
    os.close(writing)
    os.setsid()
    os.read(reading, 1)
    while True:
        BODY
for _ in range(COUNT):
    if os.fork() == 0:
        load()
print(json.dumps(1))
threading.Timer(0.5, os.close, (writing,)).start()  # when this has been told
"""
BUSY = START.replace("COUNT", "200").replace("BODY", "pass")
BOMB = START.replace("COUNT", "1").replace(
    "        BODY",
    """        try: os.fork()
        except OSError: pass""",
)


@pytest.mark.parametrize(("load", "least"), [(BUSY, 190), (BOMB, 100)], ids=["busy", "bomb"])
async def test_status_answers_under_load(backend: Any, box: str, load: str, least: int) -> None:
    """In a time that is no multiple of what an idle sandbox takes: the quickest of a few, on any machine."""
    await agent.status(backend, box)
    idle = min([await timed(backend, box) for _ in range(5)])
    await ran(backend, box, load)
    code, _ = firsts(backend, box)
    await support.eventually(lambda: running(code) >= least, 60)
    busy = min([await timed(backend, box) for _ in range(5)])
    print(f"idle {idle * 1000:.1f} ms, busy {busy * 1000:.1f} ms")
    assert busy < 0.5 + 10 * idle
    pids = firsts(backend, box)
    await backend.destroy(box)
    assert not [pid for pid in pids if lives(pid)]


async def timed(backend: Any, box: str) -> float:
    began = time.monotonic()
    await agent.status(backend, box)
    return time.monotonic() - began


def running(first: int) -> int:
    """Processes in the pid namespace of a process that want to run."""
    space = os.readlink(f"/proc/{first}/ns/pid")
    found = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            found += state == "R" and os.readlink(path / "ns/pid") == space
        except OSError:
            continue
    return found


ORPHANS = """
import time
for _ in range(1000):
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.waitpid(middle, 0)
until = time.monotonic() + 60
def dead():
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try: found += open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
        except OSError: pass
    return found
while (left := dead()) and time.monotonic() < until: time.sleep(0.05)
print(json.dumps(left))
"""


async def test_orphans_are_collected(backend: Any, box: str) -> None:
    assert await ran(backend, box, ORPHANS) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user cannot signal another's process")
async def test_the_worker_killed_from_outside_ends_the_sandbox(backend: Any, box: str) -> None:
    code, its = firsts(backend, box)
    watching = backend.watch()
    os.kill(code, signal.SIGKILL)
    await support.eventually(lambda: not lives(its), 60)
    while (ended := await asyncio.wait_for(anext(watching), 60)).sandbox_id != box:
        pass
    assert (ended.end, "worker" in ended.message) == ("lost", True)


async def test_a_stopped_worker_leaves_status_quick_and_commands_honest(backend: Any, box: str) -> None:
    code, _ = firsts(backend, box)
    os.kill(code, signal.SIGSTOP)
    try:
        assert (await agent.status(backend, box)).state == "bound"
        assert await agent.execute(backend, box, "e1", "print(1)") == ("ok", "1\n")
    finally:
        os.kill(code, signal.SIGCONT)
