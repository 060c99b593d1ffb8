"""The real agent and real kernels in real sandboxes, through the backend's own protocol."""

import json
import os
from pathlib import Path
from typing import Any

from llmsafespace_gateway.backends.base import Resources, SandboxSpec, WarmPoolSpec
from llmsafespace_gateway.backends.runtimes.runtimes import Runtimes, default_cache_dir
from llmsafespace_gateway.sandboxes.agent_client import AgentClient, opened
from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.kernel_messages import header_of, unpack
from llmsafespace_protocol.requests import BindRequest, Empty, OpenExecution, OpenRpc
from tests.integration import local_support as support

MIB = support.MIB


def runtimes() -> Runtimes:
    return Runtimes(default_cache_dir(dict(os.environ), Path.home()))


def spec(sandbox_id: str, **changes: Any) -> SandboxSpec:
    wish: dict[str, Any] = {"runtime": "python", "owner": "alice", "tenant": "default"}
    return SandboxSpec(sandbox_id=sandbox_id, **(wish | changes))


async def bind(backend: Any, sandbox_id: str, **changes: Any) -> None:
    stream = await backend.dial(sandbox_id, OpenRpc())
    await opened(stream)
    client = AgentClient(stream)
    await client.call("bind", BindRequest("claim", sandbox_id, "main", **changes))
    client.close()


async def status(backend: Any, sandbox_id: str) -> Any:
    stream = await backend.dial(sandbox_id, OpenRpc())
    await opened(stream)
    client = AgentClient(stream)
    try:
        return await client.call("status", Empty())
    finally:
        client.close()


async def execute(backend: Any, sandbox_id: str, execution: str, code: str) -> tuple[str, str]:
    """The honest end of an execution and its standard output."""
    stream = await backend.dial(sandbox_id, OpenExecution(execution=execution, context="main", code=code))
    await opened(stream)
    out, end = "", ""
    try:
        while True:
            kind, body = await stream.next_frame()
            if kind == FrameKind.JSON:
                end = json.loads(body).get("end", end)
                continue
            _, parts = unpack(body[8:])
            if header_of(parts[0]).msg_type == "stream":
                out += json.loads(bytes(parts[3]))["text"]
    except ConnectionError:
        return end, out
    finally:
        stream.close()


async def test_warm_bind_and_execute_with_env() -> None:
    pools = [WarmPoolSpec(name="warm", runtime="python", resources=Resources(cpu=2.0, memory=512 * MIB))]
    async with support.fresh(runtimes=runtimes(), pools=pools) as backend:
        await support.available(backend, "warm", 1)
        claim = await backend.claim(spec("sb-a"))
        assert claim.start.kind == "warm"
        assert claim.languages[0] == "python"
        await bind(backend, "sb-a", env={"WHO": "alice"}, cwd="/workspace")
        code = "import os, numpy; print(os.environ['WHO'], os.getcwd(), numpy.arange(3).sum())"
        assert await execute(backend, "sb-a", "e1", code) == ("ok", "alice /workspace 3\n")
        assert (await status(backend, "sb-a")).problems == []


async def test_kernel_code_cannot_read_the_agent() -> None:
    async with support.fresh(runtimes=runtimes()) as backend:
        await backend.claim(spec("sb-a"))
        await bind(backend, "sb-a")
        code = """
import os
project = PROJECT
def reads(path):
    try:
        with open(path, "rb") as f: f.read(10); return True
    except OSError: return False
def lists(path):
    try: return os.listdir(path)
    except OSError: return None
print([p for p in ("environ", "mem", "maps", "auxv", "syscall", "stack") if reads(f"/proc/1/{p}")])
print(lists("/proc/1/fd"), lists("/proc/1/map_files"))
print(sorted(os.listdir("/home")), os.path.exists("/etc/shadow"), os.path.exists(project))
print([n for n in os.environ if "TOKEN" in n or "KEY" in n])
def link(fd):
    try: return os.readlink(f"/proc/self/fd/{fd}")
    except OSError: return ""
fds = [link(fd) for fd in os.listdir("/proc/self/fd")]
print([f for f in fds if "agent.sock" in f or "lsp" in f])
try: os.kill(1, 9)
except OSError: pass
print("alive")
"""
        code = code.replace("PROJECT", repr(str(Path(__file__).parents[2])))
        end, out = await execute(backend, "sb-a", "e1", code)
        assert end == "ok"
        assert out.splitlines() == ["[]", "None None", "['sandbox'] False False", "[]", "[]", "alive"]
        assert await execute(backend, "sb-a", "e2", "print(1)") == ("ok", "1\n")


async def test_out_of_memory_is_said_so_and_the_neighbour_works() -> None:
    async with support.fresh(runtimes=runtimes()) as backend:
        small = Resources(cpu=1.0, memory=256 * MIB, storage=64 * MIB)
        for name in ("sb-a", "sb-b"):
            await backend.claim(spec(name, resources=small))
            await bind(backend, name)
        code = "held = []\nwhile True: held.append(bytearray(8 * 2**20))"
        assert (await execute(backend, "sb-a", "e1", code))[0] == "oom"
        assert await execute(backend, "sb-b", "e1", "print('works')") == ("ok", "works\n")


async def test_variables_live_on_in_a_new_gateway() -> None:
    shared = runtimes()
    async with support.data_folder() as folder:
        async with support.started(folder, runtimes=shared) as backend:
            await backend.claim(spec("sb-a"))
            await bind(backend, "sb-a")
            assert await execute(backend, "sb-a", "e1", "kept = 42; print('once')") == ("ok", "once\n")
        async with support.started(folder, runtimes=shared) as backend:
            assert await execute(backend, "sb-a", "e1", "kept = 42; print('once')") == ("ok", "once\n")
            assert await execute(backend, "sb-a", "e2", "print(kept)") == ("ok", "42\n")
            assert await backend.destroy("sb-a")
