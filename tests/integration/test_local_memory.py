"""The memory limit holds for every way in which code can take memory, with cgroups and without.

Each attack tries to get four times the limit. It must end as `oom`, or be refused, and never have twice the
limit and its storage in its hands; the neighbour works.
"""

import contextlib
import importlib.util
import re
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.base import Resources
from llmsafespace_gateway.backends.local import limits


def _load(name: str) -> Any:
    """A file beside this one, also where the tests are no package."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found is not None
    assert found.loader is not None
    module = sys.modules.setdefault(name, importlib.util.module_from_spec(found))
    found.loader.exec_module(module)
    return module


support, agent, attacks = _load("local_support"), _load("test_local_agent"), _load("memory_attacks")
MIB = support.MIB
LIMIT, STORAGE = 256, 64
SMALL = Resources(cpu=1.0, memory=LIMIT * MIB, storage=STORAGE * MIB)


@contextlib.asynccontextmanager
async def a_backend(hierarchy: limits.Hierarchy | None = None) -> AsyncIterator[Any]:
    """A backend with a neighbour, which finds these cgroups instead of the machine's."""
    patch = pytest.MonkeyPatch()
    if hierarchy is not None:
        patch.setattr(limits, "discover", lambda parent: hierarchy)
    async with support.fresh(runtimes=agent.runtimes()) as started:
        patch.undo()
        await started.claim(agent.spec("sb-neighbour", resources=SMALL))
        await agent.bind(started, "sb-neighbour")
        yield started


@pytest.fixture(scope="module")
async def uncharged() -> AsyncIterator[Any]:
    """A backend that finds no cgroups."""
    async with a_backend(limits.NONE) as started:
        yield started


@pytest.fixture(scope="module")
async def charged() -> AsyncIterator[Any]:
    """A backend with the cgroups that the machine has."""
    async with a_backend() as started:
        if not started._host.hierarchy.memory:
            pytest.skip("no memory cgroup can be written to here")
        yield started


@pytest.fixture(params=["uncharged", "charged"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Each of them."""
    return request.getfixturevalue(request.param)


# Where a cgroup charges memory, these are the ones that it might miss; the others take longer to prove it.
MISSED = (
    *("memfd in flight", "shared mappings, given up but one page", "System V memory", "huge pages"),
    *("pages lent to pipes", "TCP", "page tables"),
)
# Of little more than one of the others, and among the long tests.
ALIKE = (
    *("many processes", "POSIX shared memory", "files in every memory file system", "huge System V pages"),
    *("large pipes", "System V semaphores", "terminals", "event descriptors", "shared mappings"),
    "pipes of processes that nobody may look into",
)


def long_unless(names: Iterable[str]) -> list[Any]:
    """Every attack; those not named are long tests."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.heavy) for name in attacks.ATTACKS]


@pytest.mark.parametrize("name", long_unless(set(attacks.ATTACKS) - set(ALIKE)))
async def test_the_limit_holds_without_cgroups(name: str, uncharged: Any) -> None:
    await the_limit_holds(name, uncharged)


@pytest.mark.parametrize("name", long_unless(MISSED))
async def test_the_limit_holds_with_cgroups(name: str, charged: Any) -> None:
    await the_limit_holds(name, charged)


async def the_limit_holds(name: str, backend: Any) -> None:
    """Attack, and see what it got."""
    box = "sb-" + "".join(filter(str.isalnum, name))
    await backend.claim(agent.spec(box, resources=SMALL))
    await agent.bind(backend, box)
    try:
        code = attacks.PRELUDE + attacks.ATTACKS[name] + "\nprint('got all')"
        end, out = await agent.execute(backend, box, "e1", code)
        held = max(map(int, re.findall(r"held (\d+)", out)), default=0)
        assert end in ("oom", "error", "ok", "kernel_died", ""), (end, out)
        assert "got all" not in out or held <= LIMIT + STORAGE, (end, out[-500:])
        assert held <= 2 * (LIMIT + STORAGE), (end, out[-500:])
        assert await agent.execute(backend, "sb-neighbour", f"e-{box}", "print(6 * 7)") == ("ok", "42\n")
        print(f"{name}: {held} MiB, {end}")
    finally:
        await backend.destroy(box)


async def test_what_is_used_is_told_whatever_its_kind(uncharged: Any) -> None:
    """A sandbox that holds System V memory does not report a tenth of it."""
    await uncharged.claim(agent.spec("sb-usage", resources=SMALL))
    await agent.bind(uncharged, "sb-usage")
    try:
        code = attacks.PRELUDE + "kept.append(shared(100 * MIB)); print(len(kept))"
        assert await agent.execute(uncharged, "sb-usage", "e1", code) == ("ok", "1\n")

        async def told() -> bool:
            return bool((await agent.status(uncharged, "sb-usage")).usage.memory_bytes > 100 * MIB)

        await support.eventually(told)
    finally:
        await uncharged.destroy("sb-usage")


async def test_what_ordinary_programs_do_still_works(backend: Any) -> None:
    """Shared mappings, shared memory, pipes, sockets and processes in ordinary amounts."""
    await backend.claim(
        agent.spec("sb-plain", resources=Resources(cpu=1.0, memory=512 * MIB, storage=256 * MIB))
    )
    await agent.bind(backend, "sb-plain")
    code = """
import concurrent.futures, ctypes, mmap, multiprocessing, os, socket, subprocess
from multiprocessing import shared_memory
import numpy
block = mmap.mmap(-1, 64 * 2**20); block[:] = b"x" * len(block)
shared = shared_memory.SharedMemory(create=True, size=4 * 2**20); shared.buf[0] = 1
array = multiprocessing.Array("d", 100_000)
lock = multiprocessing.Lock()
with concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
    numbers = list(pool.map(abs, range(-8, 0)))
for _ in range(50): numpy.ones(2**21).sum()
pairs = [socket.socketpair() for _ in range(200)]
server = socket.create_server(("127.0.0.1", 0), backlog=256)
clients = [socket.create_connection(server.getsockname()) for _ in range(200)]
one = socket.socket(); one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1)
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0, ctypes.c_size_t(2**20), 0o1600)
done = subprocess.run(["sh", "-c", "head -c 5000000 /dev/zero | wc -c"], capture_output=True, text=True)
shared.unlink(); libc.shmctl(segment, 0, None)
print(numbers, callback(1), segment >= 0, done.stdout.strip())
"""
    try:
        end, out = await agent.execute(backend, "sb-plain", "e1", code)
        assert (end, out) == ("ok", "[8, 7, 6, 5, 4, 3, 2, 1] 2 True 5000000\n")
        end, out = await agent.execute(
            backend, "sb-plain", "e2", "import time; time.sleep(0.5); print(len(block))"
        )
        assert (end, out) == ("ok", "67108864\n")
    finally:
        await backend.destroy("sb-plain")
