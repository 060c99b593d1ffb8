"""One function per row of the table. Each takes the targets and returns values by target name."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psutil

from benchmarks.measuring import DISPLAYS, RAW, Bench, Values, percentile, timed
from benchmarks.rows_load import LOAD_ROWS
from benchmarks.targets import HttpTarget, Kernel, RawKernel, ThisGateway
from benchmarks.websocket_kernel import WebsocketKernel


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

    async def raw() -> float:
        return statistics.median(await _raw_cold(count))

    async def own(target: ThisGateway) -> float:
        cold = []
        for _ in range(count):
            began = time.perf_counter()
            sandbox = await target.sandbox(useWarmPool=False)
            kernel = await target.connect(sandbox["kernelId"])
            await kernel.execute("1")
            cold.append((time.perf_counter() - began) * 1000)
            await kernel.close()
            await target.end(sandbox["id"])
        return statistics.median(cold)

    async def peer(target: HttpTarget) -> float:
        taken = []
        for _ in range(count):
            milliseconds, kernel_id = await _created(target, {})
            taken.append(milliseconds)
            await target.delete(kernel_id)
        return statistics.median(taken)

    peers = bench.gateways[len(bench.own) :]
    return {RAW: await bench.raw(raw)} | await bench.each(bench.own, own) | await bench.each(peers, peer)


async def warm_create(bench: Bench) -> Values:
    """Warm create with env, a file and cwd → first result over the websocket, p50 ms."""
    body = {"env": {"WHO": "me"}, "files": {"/workspace/in.txt": "hello"}, "cwd": "/workspace"}

    async def own(target: ThisGateway) -> float:
        taken = []
        for _ in range(bench.times(20)):
            await target.settled()
            began = time.perf_counter()
            sandbox = await target.sandbox(**body)
            kernel = await target.connect(sandbox["kernelId"])
            outcome = await kernel.execute("import os; print(os.environ['WHO'], open('in.txt').read())")
            taken.append((time.perf_counter() - began) * 1000)
            assert outcome.stdout == len("me hello\n"), outcome.reply
            assert sandbox["start"]["kind"] == "warm", sandbox["start"]
            await kernel.close()
            await target.end(sandbox["id"])
        return statistics.median(taken)

    return await bench.each(bench.own, own)


async def attach(bench: Bench) -> Values:
    """Attach to a running kernel → first result, p50 ms."""

    async def raw() -> float:
        kernel = await RawKernel.start()
        await kernel.execute("1")

        async def over() -> None:
            other = kernel.attach()
            await other.client.wait_for_ready(timeout=60)
            await other.execute("1")
            await other.close()

        taken = [await timed(over) for _ in range(bench.times(10))]
        await kernel.shutdown()
        return statistics.median(taken)

    async def gateway(target: HttpTarget) -> float:
        kernel_id = await target.create()

        async def over() -> None:
            connected = await target.connect(kernel_id)
            await connected.execute("1")
            await connected.close()

        await over()
        taken = [await timed(over) for _ in range(bench.times(10))]
        await target.delete(kernel_id)
        return statistics.median(taken)

    return {RAW: await bench.raw(raw)} | await bench.each(bench.gateways, gateway)


async def _round_trips(kernel: Kernel, count: int) -> list[float]:
    for _ in range(20):
        await kernel.execute("1")
    return [await timed(lambda: kernel.execute("1")) for _ in range(count)]


async def round_trip(bench: Bench) -> Values:
    """Execute → reply and idle, p50 (p95) ms; targets take turns, so that noise meets them alike."""
    taken: dict[str, list[float]] = {}
    lost: Values = {}

    async def raw() -> list[float]:
        kernel = await RawKernel.start()
        try:
            return await _round_trips(kernel, bench.times(60))
        finally:
            await kernel.shutdown()

    async def gateway(target: HttpTarget) -> list[float]:
        kernel_id = await target.create()
        kernel = await target.connect(kernel_id)
        spent = await _round_trips(kernel, bench.times(60))
        await kernel.close()
        await target.delete(kernel_id)
        return spent

    for _ in range(5):
        turn = {RAW: await bench.raw(raw)} if RAW not in lost else {}
        turn |= await bench.each([t for t in bench.gateways if t.name not in lost], gateway)
        for name, spent in turn.items():
            if isinstance(spent, dict):
                lost[name] = spent
            else:
                taken.setdefault(name, []).extend(spent)
    return {name: (statistics.median(v), percentile(v, 0.95)) for name, v in taken.items()} | lost


async def sdk_round_trip(bench: Bench) -> Values:
    """SDK `run_code` round trip (async), p50 (p95) ms."""
    from llmsafespace import AsyncSandbox

    async def own(target: ThisGateway) -> tuple[float, float]:
        sandbox = await AsyncSandbox.create(api_url=target.url, api_key=target.key, runtime="python")
        try:
            for _ in range(20):
                await sandbox.run_code("1")
            taken = [await timed(lambda: sandbox.run_code("1")) for _ in range(bench.times(200))]
        finally:
            await sandbox.terminate()
        return statistics.median(taken), percentile(taken, 0.95)

    return await bench.each(bench.own, own)


async def restart(bench: Bench) -> Values:
    """Kernel restart → first result, p50 ms."""

    async def gateway(target: HttpTarget) -> float:
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
        await target.delete(kernel_id)
        return statistics.median(taken)

    return await bench.each(bench.gateways, gateway)


async def further_context(bench: Bench) -> Values:
    """A further context of the same language, created and ready, p50 ms."""

    async def own(target: ThisGateway) -> float:
        sandbox = await target.sandbox()
        taken = []
        url = f"{target.url}/api/v1/sandboxes/{sandbox['id']}/contexts"
        for _ in range(bench.times(8)):
            began = time.perf_counter()
            context = (await target.http.post(url, json={}, headers=target.headers)).raise_for_status().json()
            kernel = await target.connect(context["id"])
            await kernel.execute("1")
            taken.append((time.perf_counter() - began) * 1000)
            await kernel.close()
            await target.http.delete(f"{url}/{context['id']}", headers=target.headers)
            await asyncio.sleep(0.5)
        await target.end(sandbox["id"])
        return statistics.median(taken)

    return await bench.each(bench.own, own)


async def concurrent(bench: Bench) -> Values:
    """Many kernels, one execution in flight each: executions per second."""
    kernels_wanted = max(4, int(40 * min(1.0, bench.scale)))

    async def gateway(target: HttpTarget) -> float:
        ids = [await target.create() for _ in range(kernels_wanted)]
        kernels = [await target.connect(kernel_id) for kernel_id in ids]
        await asyncio.gather(*(kernel.execute("1") for kernel in kernels))
        rate = await _rate(kernels, 20)
        for kernel in kernels:
            await kernel.close()
        for kernel_id in ids:
            await target.delete(kernel_id)
        return rate

    return await bench.each(bench.gateways, gateway)


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


async def cpu_per_execute(bench: Bench) -> Values:
    """CPU per trivial execute, ms: the gateway's; for ours also agent and kernel."""
    count = bench.times(400)

    async def gateway(target: HttpTarget) -> dict[str, float]:
        kernel_id = await target.create()
        kernel = await target.connect(kernel_id)
        for _ in range(20):
            await kernel.execute("1")
        groups: dict[str, Sequence[psutil.Process]] = {"gateway": [target.usage()]}
        if isinstance(target, ThisGateway):
            await target.settled()
            groups["agent"], groups["kernel"] = target.agents_and_kernels()
        before = {name: _cpu(group) for name, group in groups.items()}
        for _ in range(count):
            await kernel.execute("1")
        spent = {name: (_cpu(group) - before[name]) / count for name, group in groups.items()}
        await kernel.close()
        await target.delete(kernel_id)
        return spent

    return await bench.each(bench.gateways, gateway)


async def throughput(bench: Bench) -> Values:
    """64 displays of 1 MiB, MiB/s, v1 (legacy JSON)."""
    code = DISPLAYS.format(n=64, size=1024 * 1024)

    async def raw() -> float:
        kernel = await RawKernel.start()
        await kernel.execute("1")
        speed = 64_000 / await timed(lambda: kernel.execute(code))
        await kernel.shutdown()
        return speed

    async def gateway(target: HttpTarget) -> tuple[float, ...]:
        speeds = []
        for legacy in (False, True):
            kernel_id = await target.create()
            kernel = await target.connect(kernel_id, legacy)
            await kernel.execute("1")
            await target.settled()  # a pool that refills takes the processor
            speeds.append(64_000 / await timed(lambda kernel=kernel: kernel.execute(code)))  # type: ignore[misc]
            await kernel.close()
            await target.delete(kernel_id)
        return tuple(speeds)

    return {RAW: await bench.raw(raw)} | await bench.each(bench.gateways, gateway)


async def completeness(bench: Bench) -> Values:
    """20 MB of stdout and 20,000 displays: what arrives, in percent, at a fast and at a stopped reader."""
    stdout = "for _ in range(20000): print('x' * 999)"
    displays = DISPLAYS.format(n=20_000, size=10)

    async def gateway(target: HttpTarget) -> dict[str, float]:
        shares = {}
        for pause in (0.0, 5.0):
            kernel_id = await target.create()
            kernel = await target.connect(kernel_id)
            reader = "stopped" if pause else "fast"
            shares[f"stdout {reader}"] = (await _read_after(kernel, stdout, pause)).stdout / 20e6 * 100
            shares[f"displays {reader}"] = (await _read_after(kernel, displays, pause)).displays / 200
            await kernel.close()
            await target.delete(kernel_id)
        return shares

    return await bench.each(bench.gateways, gateway)


async def _read_after(kernel: WebsocketKernel, code: str, pause: float) -> Any:
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    msg_id = await kernel.send("execute_request", content)
    if pause:
        kernel.socket.transport.pause_reading()
        await asyncio.sleep(pause)
        kernel.socket.transport.resume_reading()
    return await kernel.outcome(msg_id)


async def descriptors(bench: Bench) -> Values:
    """Descriptors of the gateway per connected kernel."""

    async def gateway(target: HttpTarget) -> float:
        before = target.usage().num_fds()
        ids = [await target.create() for _ in range(5)]
        kernels = [await target.connect(kernel_id) for kernel_id in ids]
        for kernel in kernels:
            await kernel.execute("1")
        each = float(target.usage().num_fds() - before) / 5
        for kernel in kernels:
            await kernel.close()
        for kernel_id in ids:
            await target.delete(kernel_id)
        return each

    return await bench.each(bench.gateways, gateway)


async def agent_memory(bench: Bench) -> Values:
    """RSS of an agent with a bound sandbox, MB."""

    async def own(target: ThisGateway) -> float:
        kernel_id = await target.create()
        largest = float(max(agent.memory_info().rss for agent in target.agents())) / 1e6
        await target.delete(kernel_id)
        return largest

    return await bench.each(bench.own, own)


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
    "descriptors": descriptors,
    "agent-memory": agent_memory,
    "concurrent": concurrent,
    **LOAD_ROWS,
}
