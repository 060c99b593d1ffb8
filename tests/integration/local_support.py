"""What the tests of the local backend share: a runtime of the probe agent, a backend, looks at the host."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

import llmsafespace_agent
import llmsafespace_protocol
from llmsafespace_gateway.backends.base import (
    Resources,
    Runtime,
    RuntimeUnavailable,
    SandboxSpec,
    WarmPoolSpec,
)
from llmsafespace_gateway.backends.local import LocalBackend
from llmsafespace_gateway.backends.local.registry import Entry
from llmsafespace_gateway.backends.runtimes.prepared import HostView, PreparedRuntime
from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.requests import OpenRpc

PROBE = Path(__file__).with_name("local_probe_agent.py")
AGENT = Path(next(iter(llmsafespace_agent.__path__)))
PROTOCOL = Path(next(iter(llmsafespace_protocol.__path__)))
MSGSPEC = Path(msgspec.__file__).parent
PREFIX = Path(sys.base_prefix)
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
MIB = 1024**2


def probe_runtime(name: str = "probe") -> PreparedRuntime:
    """A runtime whose agent is the probe, on the interpreter of the tests."""
    binds = {
        "/opt/python": str(PREFIX),
        "/opt/llmsafespace/agent/llmsafespace_agent": str(AGENT),
        "/opt/llmsafespace/agent/llmsafespace_protocol": str(PROTOCOL),
        "/opt/llmsafespace/agent/msgspec": str(MSGSPEC),
        "/opt/probe.py": str(PROBE),
    }
    library = PREFIX / "lib" / f"lib{PYTHON}.so.1.0"
    if library.exists():
        binds[str(library)] = str(library)
    interpreter = str(PREFIX / "bin" / PYTHON)
    return PreparedRuntime(
        id=name,
        language="python",
        version="3",
        display_name="Probe",
        languages=("python",),
        binds=tuple((host, inside) for inside, host in binds.items()),
        masks=(f"/opt/python/lib/{PYTHON}/site-packages",),
        folders=(),
        env={},
        kernels=(),
        agent_argv=(f"/opt/python/bin/{PYTHON}", "-I", "-S", "/opt/probe.py"),
        package_manager=(),
        packages=(),
        host=HostView(
            env={"PATH": "/usr/bin:/bin"},
            kernels=(),
            agent_argv=(
                interpreter,
                "-I",
                "-S",
                str(PROBE),
                *(str(each.parent) for each in (PROTOCOL, MSGSPEC)),
            ),
            package_manager=(),
        ),
    )


class ProbeRuntimes:
    """A source of runtimes that knows `probe` and `other`, and serves `nearby` by `probe` with a warning."""

    async def resolve(self, runtime: str) -> tuple[PreparedRuntime, tuple[str, ...]]:
        if runtime == "nearby":
            return probe_runtime(), ("nearby is served by probe",)
        if runtime not in ("probe", "other"):
            raise RuntimeUnavailable(f"there is no runtime {runtime}")
        return probe_runtime(runtime), ()

    async def list(self) -> list[Runtime]:
        return []


def spec(sandbox_id: str, **changes: Any) -> SandboxSpec:
    """A request for a small sandbox of the probe runtime."""
    wish: dict[str, Any] = {
        "runtime": "probe",
        "owner": "alice",
        "tenant": "default",
        "resources": Resources(cpu=1.0, memory=128 * MIB, storage=64 * MIB),
    }
    return SandboxSpec(sandbox_id=sandbox_id, **(wish | changes))


def pool(name: str = "warm", **changes: Any) -> WarmPoolSpec:
    """A pool of one such sandbox."""
    wish: dict[str, Any] = {
        "runtime": "probe",
        "resources": Resources(cpu=1.0, memory=128 * MIB, storage=64 * MIB),
    }
    return WarmPoolSpec(name=name, **(wish | changes))


@asynccontextmanager
async def data_folder() -> AsyncIterator[Path]:
    """A data folder that must hold nothing living in the end."""
    folder = Path(tempfile.mkdtemp(prefix="lsp-"))
    try:
        yield folder
        assert list((folder / "sandboxes").iterdir()) == []
        await eventually(lambda: processes_of(folder) == [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def started(folder: Path, **options: Any) -> AsyncIterator[LocalBackend]:
    """A started backend on `folder`; stopped at the end, its claimed sandboxes living on."""
    backend = LocalBackend(folder, options.pop("runtimes", None) or ProbeRuntimes(), **options)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


@asynccontextmanager
async def fresh(**options: Any) -> AsyncIterator[LocalBackend]:
    """A started backend on a folder of its own; every sandbox is destroyed at the end."""
    async with data_folder() as folder, started(folder, **options) as backend:
        try:
            yield backend
        finally:
            for place in await backend.living():
                await backend.destroy(place.sandbox_id)


async def call(backend: LocalBackend, sandbox_id: str, method: str, **params: Any) -> Any:
    """Call a method of the probe."""
    stream = await backend.dial(sandbox_id, OpenRpc())
    try:
        await stream.next_frame()
        stream.send(FrameKind.JSON, json.dumps({"id": 1, "method": method, "params": params}).encode())
        return json.loads((await stream.next_frame())[1])["result"]
    finally:
        stream.close()


async def run(backend: LocalBackend, sandbox_id: str, code: str) -> str:
    """Run Python code inside; what it printed."""
    ran = await call(backend, sandbox_id, "run", code=code)
    assert ran["status"] == 0, ran["stderr"]
    return str(ran["stdout"]).strip()


async def eventually(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `check` (a function or a coroutine function) gives once it is true."""
    until = time.monotonic() + seconds
    while True:
        got = check()
        if asyncio.iscoroutine(got):
            got = await got
        if got:
            return got
        assert time.monotonic() < until, f"{check} did not become true"
        await asyncio.sleep(0.01)


async def available(backend: LocalBackend, which: str | WarmPoolSpec, count: int) -> None:
    """Wait until a pool has so many warm sandboxes and starts no more."""
    wanted = pool(which) if isinstance(which, str) else which

    async def full() -> bool:
        status = await backend.pool_status(wanted)
        return status.available == count and status.pending == 0

    await eventually(full)


def entry_of(backend: LocalBackend, sandbox_id: str) -> Entry:
    """What the backend knows of a sandbox that is there."""
    entry = backend._registry.get(sandbox_id)
    assert entry is not None
    return entry


def processes_of(folder: Path) -> list[int]:
    """Processes of the host that were started for sandboxes of this data folder, keepers included."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        try:
            links = [os.readlink(path / "cwd"), *(os.readlink(fd) for fd in (path / "fd").iterdir())]
            words = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if any(link.startswith(f"{folder}/") for link in links) or f"{folder}/".encode() in words:
            found.append(int(path.name))
    return found
