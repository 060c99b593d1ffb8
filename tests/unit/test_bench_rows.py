"""The benchmark's rows are independent: what hangs, dies or fails costs its own cell, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as benchmark
from benchmarks import targets
from benchmarks.measuring import Bench, Values
from benchmarks.peers import EnterpriseGateway, without_orjson
from benchmarks.table import ratio, shown, table
from benchmarks.targets import HttpTarget, ThisGateway
from llmsafespace_gateway.backends.local.keeper.processes import start_time


class Server(HttpTarget):
    """A real process with a child, as a peer with its kernels is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        child = (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
        )
        process = self._spawn([sys.executable, "-c", child])
        while not psutil.Process(process.pid).children():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def family(self) -> list[psutil.Process]:
        return [self.usage(), *self.usage().children(recursive=True)]


@pytest.fixture
async def servers() -> Any:
    made = [Server("ours"), Server("peer")]
    for server in made:
        await server.start()
    yield made
    for server in made:
        await server.end_hard()
        await server.stop()


def bench_of(servers: list[Server], limit: float = 0.5) -> Bench:
    bench = Bench(servers[0], [], limit=limit)  # type: ignore[arg-type]
    bench.gateways = list(servers)
    return bench


@pytest.mark.parametrize("fault", ["hangs", "dies", "fails", "is stopped"])
async def test_a_faulty_peer_costs_its_cell_and_is_started_again(fault: str, servers: list[Server]) -> None:
    bench = bench_of(servers)
    family = await servers[1].family()

    async def measure(target: Server) -> int:
        if target.name == "peer" and target.starts == 1:
            if fault == "dies":
                os.kill(target.usage().pid, signal.SIGKILL)
            elif fault == "is stopped":
                os.kill(target.usage().pid, signal.SIGSTOP)
            if fault == "fails":
                raise RuntimeError("no kernel")
            await asyncio.sleep(60)
        return 7

    async def row(bench: Bench) -> Values:
        return await bench.each(servers, measure)

    results: dict[str, Values] = {}
    await benchmark.run_rows(bench, {"first": row, "second": row}, results, lambda: None)
    assert results["first"]["ours"] == 7
    assert "failed" in results["first"]["peer"]
    assert results["second"] == {"ours": 7, "peer": 7}
    assert servers[1].starts == 2
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]


async def test_a_row_that_fails_itself_costs_no_other_and_all_is_written_as_it_goes(
    servers: list[Server], tmp_path: Path
) -> None:
    path = tmp_path / "results" / "latest.json"
    written: list[list[str]] = []
    results: dict[str, Values] = {}

    def note() -> None:
        benchmark.write(path, {"cores": 2}, results)
        written.append(list(json.loads(path.read_text())["rows"]))

    async def good(bench: Bench) -> Values:
        return {"ours": 1.0}

    async def bad(bench: Bench) -> Values:
        raise KeyError("x")

    await benchmark.run_rows(bench_of(servers), {"a": good, "b": bad, "c": good}, results, note)
    assert written == [["a"], ["a", "b"], ["a", "b", "c"]]
    assert "KeyError" in results["b"]["failed"]
    text = table(results, {"a": "A row"}, "ours", ["peer"])
    assert "A row" in text
    assert "failed KeyError" in text


async def test_a_peer_that_cannot_be_started_again_is_left_out_with_the_reason(servers: list[Server]) -> None:
    bench, peer = bench_of(servers), servers[1]

    async def refuse() -> None:
        raise OSError("no such program")

    async def fail(target: Server) -> int:
        raise RuntimeError("x")

    peer.start = refuse  # type: ignore[method-assign]
    assert "failed" in (await bench.each([peer], fail))["peer"]
    again = await bench.each([peer], fail)
    assert "no such program" in again["peer"]["failed"]


def test_enterprise_gateway_is_left_out_where_its_python_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    left_out = EnterpriseGateway(tmp_path / "environment", orjson=False)
    assert left_out.missing is not None
    assert "python3.11" in left_out.missing


def test_without_orjson_a_kernel_serializes_with_json(tmp_path: Path) -> None:
    env = {**os.environ, **without_orjson(tmp_path / "shadow")}
    code = "import jupyter_client.session as s; print(getattr(s, 'orjson', None))"
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == "None\n"


def test_only_the_first_processes_of_its_own_sandboxes_are_a_gateways_agents(tmp_path: Path) -> None:
    """Neither another gateway's, nor what is gone, nor what was never written whole, nor a later process."""
    mine = os.getpid()
    first(tmp_path / "a", f"{mine} {start_time(mine)}")
    others = ["4194304 1", "", "x y", f"{mine}", f"{mine} 0", f"{mine} {int(start_time(mine)) - 1}"]
    for number, text in enumerate(others):
        first(tmp_path / f"b{number}", text)
    assert [agent.pid for agent in ThisGateway(tmp_path).agents()] == [mine]
    assert ThisGateway(tmp_path / "other").agents() == []


def first(folder: Path, text: str) -> None:
    """What a keeper writes about the first process of a sandbox."""
    made = folder.parent / "sandboxes" / folder.name
    made.mkdir(parents=True)
    (made / "first").write_text(text)


async def test_the_end_of_a_gateway_does_not_wait_for_a_zombie(tmp_path: Path) -> None:
    """Somebody else has to reap it, and perhaps never does."""
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        first(tmp_path / "a", f"{sleeper.pid} {start_time(sleeper.pid)}")
        async with asyncio.timeout(5):
            await ThisGateway(tmp_path).stop()
        assert psutil.Process(sleeper.pid).status() == "zombie"
        sleeper.wait()


async def test_the_end_of_a_gateway_waits_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "GONE", 0.2)
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        first(tmp_path / "a", f"{sleeper.pid} {start_time(sleeper.pid)}")
        monkeypatch.setattr(psutil.Process, "kill", lambda process: None)
        async with asyncio.timeout(5):
            with pytest.raises(TimeoutError, match=str(sleeper.pid)):
                await ThisGateway(tmp_path).stop()
        sleeper.kill()


def test_values_and_ratios() -> None:
    assert shown({"p50": 1.234, "note": "gone"}) == "p50 1.23, note gone"
    assert shown((5.0, 700.4)) == "5 (700)"
    assert ratio({"ours": 2.0, "peer": (4.0, 9.0)}, "ours", "peer") == "0.50"
    assert ratio({"ours": 2.0, "peer": {"failed": "x"}}, "ours", "peer") == "-"
