"""One function per row of the table. Each takes the targets and returns values by target name."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import psutil

from benchmarks.targets import HttpTarget, Kernel, KernelGateway, RawKernel, ThisGateway
from benchmarks.websocket_kernel import WebsocketKernel

RAW = "jupyter_client"
OURS = ThisGateway.name
KG = KernelGateway.name
Values = dict[str, Any]


class Bench:
    """The running targets and how often to repeat."""

    def __init__(self, ours: ThisGateway, peer: KernelGateway | None, scale: float) -> None:
        self.ours = ours
        self.peer = peer
        self.scale = scale

    @property
    def gateways(self) -> Sequence[HttpTarget]:
        """Every gateway that is measured."""
        return [self.ours] if self.peer is None else [self.ours, self.peer]

    def times(self, count: int) -> int:
        """`count` scaled, at least 3."""
        return max(3, int(count * self.scale))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def _raw_cold(count: int) -> list[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        kernel = await RawKernel.start()
        await kernel.execute("1")
        taken.append((time.perf_counter() - began) * 1000)
        await kernel.shutdown()
    return taken


async def _created(target: HttpTarget, body: dict[str, Any]) -> tuple[float, str]:
    began = time.perf_counter()
    kernel_id = await target.create(body)
    kernel = await target.connect(kernel_id)
    await kernel.execute("1")
    taken = (time.perf_counter() - began) * 1000
    await kernel.close()
    return taken, kernel_id


async def cold_create(bench: Bench) -> Values:
    """Cold create → first result, p50 ms."""
    count = bench.times(7)
    values: Values = {RAW: statistics.median(await _raw_cold(count))}
    cold = []
    for _ in range(count):
        began = time.perf_counter()
        sandbox = await bench.ours.sandbox(useWarmPool=False)
        kernel = await bench.ours.connect(sandbox["kernelId"])
        await kernel.execute("1")
        cold.append((time.perf_counter() - began) * 1000)
        await kernel.close()
        await bench.ours.end(sandbox["id"])
    values[OURS] = statistics.median(cold)
    if bench.peer is not None:
        taken = []
        for _ in range(count):
            milliseconds, kernel_id = await _created(bench.peer, {})
            taken.append(milliseconds)
            await bench.peer.delete(kernel_id)
        values[KG] = statistics.median(taken)
    return values


async def warm_create(bench: Bench) -> Values:
    """Warm create with env, a file and cwd → first result over the websocket, p50 ms."""
    taken = []
    body = {"env": {"WHO": "me"}, "files": {"/workspace/in.txt": "hello"}, "cwd": "/workspace"}
    for _ in range(bench.times(20)):
        await bench.ours.settled()
        began = time.perf_counter()
        sandbox = await bench.ours.sandbox(**body)
        kernel = await bench.ours.connect(sandbox["kernelId"])
        outcome = await kernel.execute("import os; print(os.environ['WHO'], open('in.txt').read())")
        taken.append((time.perf_counter() - began) * 1000)
        assert outcome.stdout == len("me hello\n"), outcome.reply
        assert sandbox["start"]["kind"] == "warm", sandbox["start"]
        await kernel.close()
        await bench.ours.end(sandbox["id"])
    return {OURS: statistics.median(taken)}


async def attach(bench: Bench) -> Values:
    """Attach to a running kernel → first result, p50 ms."""
    values: Values = {}
    kernel = await RawKernel.start()
    await kernel.execute("1")

    async def raw() -> None:
        other = kernel.attach()
        await other.client.wait_for_ready(timeout=60)
        await other.execute("1")
        await other.close()

    values[RAW] = statistics.median([await timed(raw) for _ in range(bench.times(10))])
    await kernel.shutdown()
    for target in bench.gateways:
        kernel_id = await target.create()

        async def over(target: HttpTarget = target, kernel_id: str = kernel_id) -> None:
            connected = await target.connect(kernel_id)
            await connected.execute("1")
            await connected.close()

        await over()
        values[target.name] = statistics.median([await timed(over) for _ in range(bench.times(10))])
        await target.delete(kernel_id)
    return values


async def _round_trips(kernel: Kernel, count: int) -> list[float]:
    for _ in range(20):
        await kernel.execute("1")
    return [await timed(lambda: kernel.execute("1")) for _ in range(count)]


async def round_trip(bench: Bench) -> Values:
    """Execute → reply and idle, p50 (p95) ms; targets take turns, so that noise meets them alike."""
    kernels: dict[str, Kernel] = {RAW: await RawKernel.start()}
    ids: list[tuple[HttpTarget, str]] = []
    for target in bench.gateways:
        kernel_id = await target.create()
        ids.append((target, kernel_id))
        kernels[target.name] = await target.connect(kernel_id)
    taken: dict[str, list[float]] = {name: [] for name in kernels}
    for _ in range(5):
        for name, kernel in kernels.items():
            taken[name] += await _round_trips(kernel, bench.times(60))
    for kernel in kernels.values():
        await kernel.close()
    for target, kernel_id in ids:
        await target.delete(kernel_id)
    raw = kernels[RAW]
    assert isinstance(raw, RawKernel)
    await raw.shutdown()
    return {name: (statistics.median(v), percentile(v, 0.95)) for name, v in taken.items()}


async def sdk_round_trip(bench: Bench) -> Values:
    """SDK `run_code` round trip (async), p50 (p95) ms."""
    from llmsafespace import AsyncSandbox

    sandbox = await AsyncSandbox.create(api_url=bench.ours.url, api_key=bench.ours.key, runtime="python")
    try:
        for _ in range(20):
            await sandbox.run_code("1")
        taken = [await timed(lambda: sandbox.run_code("1")) for _ in range(bench.times(200))]
    finally:
        await sandbox.terminate()
    return {OURS: (statistics.median(taken), percentile(taken, 0.95))}


async def restart(bench: Bench) -> Values:
    """Kernel restart → first result, p50 ms."""
    values: Values = {}
    for target in bench.gateways:
        kernel_id = await target.create()
        taken = []
        for _ in range(bench.times(8)):
            began = time.perf_counter()
            await target.restart(kernel_id)
            kernel = await target.connect(kernel_id)
            await kernel.execute("1")
            taken.append((time.perf_counter() - began) * 1000)
            await kernel.close()
            await asyncio.sleep(0.5)
        values[target.name] = statistics.median(taken)
        await target.delete(kernel_id)
    return values


async def further_context(bench: Bench) -> Values:
    """A further context of the same language, created and ready, p50 ms."""
    ours = bench.ours
    sandbox = await ours.sandbox()
    taken = []
    url = f"{ours.url}/api/v1/sandboxes/{sandbox['id']}/contexts"
    for _ in range(bench.times(8)):
        began = time.perf_counter()
        context = (await ours.http.post(url, json={}, headers=ours.headers)).raise_for_status().json()
        kernel = await ours.connect(context["id"])
        await kernel.execute("1")
        taken.append((time.perf_counter() - began) * 1000)
        await kernel.close()
        await ours.http.delete(f"{url}/{context['id']}", headers=ours.headers)
        await asyncio.sleep(0.5)
    await ours.end(sandbox["id"])
    return {OURS: statistics.median(taken)}


async def concurrent(bench: Bench) -> Values:
    """Many kernels, one execution in flight each: executions per second."""
    kernels_wanted = max(4, int(40 * min(1.0, bench.scale)))
    values: Values = {}
    for target in bench.gateways:
        ids = [await target.create() for _ in range(kernels_wanted)]
        kernels = [await target.connect(kernel_id) for kernel_id in ids]
        await asyncio.gather(*(kernel.execute("1") for kernel in kernels))
        values[target.name] = await _rate(kernels, 20)
        for kernel in kernels:
            await kernel.close()
        for kernel_id in ids:
            await target.delete(kernel_id)
    return values


async def _rate(kernels: list[WebsocketKernel], each: int) -> float:
    async def run(kernel: WebsocketKernel) -> None:
        for _ in range(each):
            await kernel.execute("1")

    began = time.perf_counter()
    await asyncio.gather(*(run(kernel) for kernel in kernels))
    return len(kernels) * each / (time.perf_counter() - began)


def _cpu(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total * 1000


def agents_and_kernels(gateway: psutil.Process) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """The agents of the sandboxes on this machine, and the processes below them."""
    agents = [p for p in psutil.process_iter(["cmdline"]) if _is_agent(p.info["cmdline"] or [])]
    below = [child for agent in agents for child in agent.children(recursive=True)]
    return agents, below


def _is_agent(command: Sequence[str]) -> bool:
    return len(command) > 1 and command[-1].endswith("llmsafespace/agent") and "bwrap" not in command[0]


async def cpu_per_execute(bench: Bench) -> Values:
    """CPU per trivial execute, ms: the gateway's; for ours also agent and kernel."""
    values: Values = {}
    count = bench.times(400)
    for target in bench.gateways:
        kernel_id = await target.create()
        kernel = await target.connect(kernel_id)
        for _ in range(20):
            await kernel.execute("1")
        gateway = target.usage()
        agents, below = agents_and_kernels(gateway) if target is bench.ours else ([], [])
        before = _cpu([gateway]), _cpu(agents), _cpu(below)
        for _ in range(count):
            await kernel.execute("1")
        after = _cpu([gateway]), _cpu(agents), _cpu(below)
        spent = [(b - a) / count for a, b in zip(before, after, strict=True)]
        values[target.name] = {"gateway": spent[0]}
        if target is bench.ours:
            values[target.name] |= {"agent": spent[1], "kernel": spent[2]}
        await kernel.close()
        await target.delete(kernel_id)
    return values


DISPLAYS = "from IPython.display import display_png\nfor _ in range({n}): display_png('x' * {size}, raw=True)"


async def throughput(bench: Bench) -> Values:
    """64 displays of 1 MiB, MiB/s, v1 (legacy JSON)."""
    values: Values = {}
    code = DISPLAYS.format(n=64, size=1024 * 1024)
    raw = await RawKernel.start()
    await raw.execute("1")
    values[RAW] = 64_000 / await timed(lambda: raw.execute(code))
    await raw.shutdown()
    for target in bench.gateways:
        speeds = []
        for legacy in (False, True):
            kernel_id = await target.create()
            kernel = await target.connect(kernel_id, legacy)
            await kernel.execute("1")
            speeds.append(64_000 / await timed(lambda kernel=kernel: kernel.execute(code)))  # type: ignore[misc]
            await kernel.close()
            await target.delete(kernel_id)
        values[target.name] = tuple(speeds)
    return values


async def completeness(bench: Bench) -> Values:
    """20 MB of stdout and 20,000 displays: what arrives, in percent, at a fast and at a stopped reader."""
    values: Values = {}
    stdout = "for _ in range(20000): print('x' * 999)"
    displays = DISPLAYS.format(n=20_000, size=10)
    for target in bench.gateways:
        shares = {}
        for pause in (0.0, 5.0):
            kernel_id = await target.create()
            kernel = await target.connect(kernel_id)
            reader = "stopped" if pause else "fast"
            shares[f"stdout {reader}"] = (await _read_after(kernel, stdout, pause)).stdout / 20e6 * 100
            shares[f"displays {reader}"] = (await _read_after(kernel, displays, pause)).displays / 200
            await kernel.close()
            await target.delete(kernel_id)
        values[target.name] = shares
    return values


async def _read_after(kernel: WebsocketKernel, code: str, pause: float) -> Any:
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    msg_id = await kernel.send("execute_request", content)
    if pause:
        kernel.socket.transport.pause_reading()
        await asyncio.sleep(pause)
        kernel.socket.transport.resume_reading()
    return await kernel.outcome(msg_id)


async def stalled_memory(bench: Bench) -> Values:
    """Growth of the gateway's memory while 400 MiB wait at a stalled reader, MB."""
    values: Values = {}
    code = DISPLAYS.format(n=400, size=1024 * 1024)
    for target in bench.gateways:
        kernel_id = await target.create()
        kernel = await target.connect(kernel_id)
        await kernel.execute("1")
        before = target.usage().memory_info().rss
        kernel.socket.transport.pause_reading()
        await kernel.send("execute_request", {"code": code, "silent": False, "store_history": False})
        peak = before
        for _ in range(80):
            await asyncio.sleep(0.1)
            peak = max(peak, target.usage().memory_info().rss)
        values[target.name] = (peak - before) / 1e6
        kernel.socket.transport.abort()
        with contextlib.suppress(httpx.TimeoutException):  # a peer may hang at it until its own end
            await target.delete(kernel_id)
        gc.collect()
    return values


async def descriptors(bench: Bench) -> Values:
    """Descriptors of the gateway per connected kernel."""
    values: Values = {}
    for target in bench.gateways:
        before = target.usage().num_fds()
        ids = [await target.create() for _ in range(5)]
        kernels = [await target.connect(kernel_id) for kernel_id in ids]
        for kernel in kernels:
            await kernel.execute("1")
        values[target.name] = (target.usage().num_fds() - before) / 5
        for kernel in kernels:
            await kernel.close()
        for kernel_id in ids:
            await target.delete(kernel_id)
    return values


async def agent_memory(bench: Bench) -> Values:
    """RSS of an agent with a bound sandbox, MB."""
    kernel_id = await bench.ours.create()
    agents, _ = agents_and_kernels(bench.ours.usage())
    values = {OURS: max(agent.memory_info().rss for agent in agents) / 1e6}
    await bench.ours.delete(kernel_id)
    return values


ROWS: dict[str, Callable[[Bench], Awaitable[Values]]] = {
    "warm-create": warm_create,
    "cold-create": cold_create,
    "attach": attach,
    "round-trip": round_trip,
    "sdk": sdk_round_trip,
    "restart": restart,
    "context": further_context,
    "cpu": cpu_per_execute,
    "throughput": throughput,
    "completeness": completeness,
    "stalled": stalled_memory,
    "descriptors": descriptors,
    "agent-memory": agent_memory,
    "concurrent": concurrent,
}
