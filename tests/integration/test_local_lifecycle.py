"""Claim, find again, end, and what is left: nothing. Also run as an ordinary user (see test_local_user)."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.base import EgressRule, Ended, Resources, RuntimeUnavailable
from llmsafespace_gateway.backends.local import LocalBackend, records
from llmsafespace_gateway.egress.proxy import EgressProxy
from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.requests import OpenRpc
from tests.integration import local_support as support

MIB = support.MIB

GATEWAY = """
import asyncio, importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("local_support", sys.argv[1])
support = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)
async def main():
    async with support.started(Path(sys.argv[2]), pools=[support.pool(min_size=2)]) as backend:
        await support.available(backend, "warm", 2)
        await backend.claim(support.spec("sb-kept"))
        await support.available(backend, "warm", 2)
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def keeper_of(backend: LocalBackend, sandbox_id: str) -> int:
    pid = records.keeper_of(support.entry_of(backend, sandbox_id).folder)
    assert pid is not None
    return pid


async def next_end(backend: LocalBackend) -> Ended:
    ends = backend.watch()
    try:
        return await asyncio.wait_for(anext(ends), 30)
    finally:
        await ends.aclose()


def everything_of(backend: LocalBackend, sandbox_id: str) -> list[Path]:
    """The paths that a sandbox has on the host."""
    entry = support.entry_of(backend, sandbox_id)
    return [entry.folder, *map(Path, entry.state.cgroups)]


async def test_cold_claim_is_idempotent_and_says_why() -> None:
    async with support.fresh() as backend:
        first, second = await asyncio.gather(*(backend.claim(support.spec("sb-a")) for _ in range(2)))
        assert first == second == await backend.claim(support.spec("sb-a"))
        assert (first.start.kind, first.start.reason) == ("cold", "there is no warm pool")
        assert len(await backend.living()) == 1
        place = await backend.find("sb-a")
        assert place is not None
        assert (place.sandbox_id, place.runtime) == ("sb-a", "probe")
        assert await backend.find("sb-b") is None


async def test_unknown_sandboxes_and_runtimes() -> None:
    async with support.fresh() as backend:
        with pytest.raises(RuntimeUnavailable):
            await backend.claim(support.spec("sb-a", runtime="nowhere"))
        with pytest.raises(ApiError, match="no living sandbox") as caught:
            await backend.dial("sb-a", OpenRpc())
        assert caught.value.code == "not_found"
        assert not await backend.destroy("sb-a")


async def test_destroy_leaves_nothing() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await support.call(backend, "sb-a", "spawn", code="import time; time.sleep(1000)")
        paths, keeper = everything_of(backend, "sb-a"), keeper_of(backend, "sb-a")
        assert all(path.exists() for path in paths)
        assert await backend.destroy("sb-a", "expired")
        assert not any(path.exists() for path in paths)
        assert keeper not in support.processes_of(backend._data_dir)
        assert support.processes_of(backend._data_dir) == []
        assert await backend.find("sb-a") is None
        ended = await next_end(backend)
        assert (ended.sandbox_id, ended.end) == ("sb-a", "expired")


@pytest.mark.parametrize(("status", "end"), [(0, "terminated"), (10, "expired"), (11, "oom"), (3, "lost")])
async def test_the_agents_exit_status_is_the_end(status: int, end: str) -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        paths = everything_of(backend, "sb-a")
        stream = await backend.dial("sb-a", OpenRpc())
        await stream.next_frame()
        stream.send(0, b'{"id":1,"method":"leave","params":{"status":%d}}' % status)
        ended = await next_end(backend)
        assert (ended.sandbox_id, ended.end) == ("sb-a", end)
        await support.eventually(lambda: not any(path.exists() for path in paths))


async def test_killed_keeper_takes_its_sandbox_along() -> None:
    async with support.fresh() as backend:
        await backend.claim(support.spec("sb-a"))
        await support.call(backend, "sb-a", "spawn", code="import time; time.sleep(1000)")
        paths = everything_of(backend, "sb-a")
        os.kill(keeper_of(backend, "sb-a"), signal.SIGKILL)
        ended = await next_end(backend)
        assert (ended.sandbox_id, ended.end) == ("sb-a", "lost")
        await support.eventually(lambda: support.processes_of(backend._data_dir) == [])
        assert not any(path.exists() for path in paths)


async def test_failing_agent_is_an_error_with_its_words_and_leaves_nothing() -> None:
    async with support.fresh() as backend:
        with pytest.raises(ApiError, match="it was told to fail") as caught:
            await backend.claim(support.spec("sb-a", env={"PYTHON_FAIL": "1"}))
        assert caught.value.code == "service_unavailable"
        assert await backend.living() == []
        assert list((backend._data_dir / "ended").iterdir()) == []


async def test_cancelled_claim_goes_on_and_can_be_destroyed() -> None:
    async with support.fresh() as backend:
        claiming = asyncio.create_task(backend.claim(support.spec("sb-a")))
        await support.eventually(lambda: list((backend._data_dir / "sandboxes").iterdir()))
        claiming.cancel()
        assert await backend.destroy("sb-a")
        assert await backend.living() == []


async def test_found_again_after_a_stop_and_ends_of_meanwhile_are_told() -> None:
    async with support.data_folder() as folder:
        async with support.started(folder) as backend:
            for name in ("sb-a", "sb-b", "sb-c"):
                await backend.claim(support.spec(name))
            await support.run(backend, "sb-a", "open('/workspace/note', 'w').write('kept')")
            to_kill, to_end = keeper_of(backend, "sb-b"), keeper_of(backend, "sb-c")
        os.kill(to_kill, signal.SIGKILL)
        os.kill(to_end, signal.SIGTERM)
        await support.eventually(lambda: not Path(f"/proc/{to_end}").exists())
        async with support.started(folder) as backend:
            assert [place.sandbox_id for place in await backend.living()] == ["sb-a"]
            assert await support.run(backend, "sb-a", "print(open('/workspace/note').read())") == "kept"
            ends = backend.watch()
            told = {ended.sandbox_id: ended.end for ended in [await anext(ends), await anext(ends)]}
            assert told == {"sb-b": "lost", "sb-c": "terminated"}
            await backend.destroy("sb-a")
            assert (await asyncio.wait_for(anext(ends), 30)).sandbox_id == "sb-a"
            await ends.aclose()


async def test_end_is_told_again_until_it_was_heard() -> None:
    async with support.data_folder() as folder:
        async with support.started(folder) as backend:
            await backend.claim(support.spec("sb-a"))
            await backend.destroy("sb-a")
            assert (await next_end(backend)).sandbox_id == "sb-a"
        async with support.started(folder) as backend:
            ends = backend.watch()
            assert (await asyncio.wait_for(anext(ends), 30)).sandbox_id == "sb-a"
            waiting = asyncio.ensure_future(anext(ends))
            await support.eventually(lambda: list((folder / "ended").iterdir()) == [])
            waiting.cancel()


async def test_killed_gateway_leaves_the_claimed_and_only_them() -> None:
    async with support.data_folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", GATEWAY, support.__file__, str(folder)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
            assert len(list((folder / "sandboxes").iterdir())) == 3
        finally:
            process.kill()
            process.communicate()
        await support.eventually(lambda: len(list((folder / "sandboxes").iterdir())) == 1)
        async with support.started(folder) as backend:
            assert [place.sandbox_id for place in await backend.living()] == ["sb-kept"]
            assert await support.run(backend, "sb-kept", "print('works')") == "works"
            assert await backend.destroy("sb-kept")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(anext(backend.watch()), 30)


async def test_deep_data_folders_work() -> None:
    async with support.data_folder() as folder:
        deep = folder / ("d" * 100) / ("e" * 60)
        deep.mkdir(parents=True)
        async with support.started(deep) as backend:
            await backend.claim(support.spec("sb-a"))
            assert await support.run(backend, "sb-a", "print('works')") == "works"
            await backend.destroy("sb-a")
        (folder / "sandboxes").mkdir()


async def test_egress_proxy_is_reachable_and_survives_a_restart() -> None:
    ask = """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/llmsafespace/egress/proxy.sock")
s.sendall(b"CONNECT not-allowed.example:443 HTTP/1.1\\r\\nHost: not-allowed.example:443\\r\\n\\r\\n")
print(s.recv(1000).decode().splitlines()[0])
"""
    async with support.data_folder() as folder:
        rules = (EgressRule(domain="allowed.example"),)
        for restarted in (False, True):
            egress = EgressProxy()
            async with support.started(folder, egress=egress) as backend:
                if not restarted:
                    claim = await backend.claim(support.spec("sb-a", egress=rules))
                    assert claim.isolation["network"] == "egress proxy"
                assert " 403 " in await support.run(backend, "sb-a", ask)
                if restarted:
                    await backend.destroy("sb-a")
            await egress.stop()


async def test_without_isolation_it_says_so_and_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with support.fresh(insecure=True) as backend:
        assert "NOT ISOLATED" in caplog.text
        claim = await backend.claim(support.spec("sb-a"))
        assert claim.isolation["backend"] == "none"
        assert "NOT isolated" in claim.isolation["message"]
        pid = (await support.call(backend, "sb-a", "spawn", code="import time; time.sleep(1000)"))["pid"]
        assert Path(f"/proc/{pid}").exists()
        assert await backend.destroy("sb-a")
        assert not Path(f"/proc/{pid}").exists()


async def test_resources_are_the_requests_own_when_cold() -> None:
    async with support.fresh() as backend:
        claim = await backend.claim(
            support.spec("sb-a", resources=Resources(memory=96 * MIB, storage=32 * MIB))
        )
        assert claim.isolation["limits"]["memory"]["bytes"] == 96 * MIB
        size = "import os; s = os.statvfs('/workspace'); print(s.f_blocks * s.f_frsize)"
        assert int(await support.run(backend, "sb-a", size)) <= 32 * MIB
