"""Rows about much at once: floods, readers that stall, bursts of creates, a gateway that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from benchmarks.measuring import DISPLAYS, Bench, Peaks, Values, failed, percentile
from benchmarks.targets import HttpTarget, ThisGateway

DURABLE = "v1.durable.llmsafespace.dev"


async def flood(bench: Bench) -> Values:
    """2 GB of output of a default sandbox: MB/s, percent delivered, and growth of each part's RSS, MB."""
    lines = max(1000, int(20_000 * min(1.0, bench.scale)))
    code = f"for _ in range({lines}): print('x' * 99_999)"

    async def own(target: ThisGateway) -> dict[str, Any]:
        sandbox = await target.sandbox()
        kernel = await target.connect(sandbox["kernelId"])
        await kernel.execute("1")
        await target.settled()
        agents, kernels = target.agents_and_kernels()
        began = time.perf_counter()
        async with Peaks(kernel=kernels, agent=agents, gateway=[target.usage()]) as peaks:
            msg_id = await kernel.send("execute_request", {"code": code, "silent": False})
            outcome = await kernel.outcome(msg_id, bench.limit)
        seconds = time.perf_counter() - began
        await kernel.close()
        await target.end(sandbox["id"])
        return {
            "MB/s": outcome.stdout / 1e6 / seconds,
            "percent": outcome.stdout / (lines * 1e5) * 100,
            **{f"{name} +MB": peaks.grown(name) for name in ("kernel", "agent", "gateway")},
        }

    return await bench.each(bench.own, own)


# -- readers that stall ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def over_http(
    target: ThisGateway, sandbox: dict[str, Any], code: str, accept: str
) -> AsyncIterator[None]:
    """An execution whose stream nobody reads."""
    where = urllib.parse.urlsplit(target.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**16)
    body = json.dumps({"content": code, "timeout": 300}).encode()
    head = (
        f"POST /api/v1/sandboxes/{sandbox['id']}/execute HTTP/1.1\r\nHost: {where.netloc}\r\n"
        f"Authorization: Bearer {target.key}\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    assert b"200" in await reader.readline()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def over_channels(target: HttpTarget, kernel_id: str, code: str, legacy: bool) -> AsyncIterator[None]:
    """Kernel channels that nobody reads."""
    kernel = await target.connect(kernel_id, legacy)
    await kernel.execute("1")
    kernel.socket.transport.pause_reading()
    await kernel.send("execute_request", {"code": code, "silent": False, "store_history": False})
    try:
        yield
    finally:
        kernel.socket.transport.abort()


@contextlib.asynccontextmanager
async def over_websocket(
    target: ThisGateway, path: str, first: str | bytes, protocol: str | None
) -> AsyncIterator[None]:
    """A websocket of another kind that nobody reads."""
    socket = await connect(
        target.url.replace("http", "ws", 1) + path,
        additional_headers={"Authorization": f"Bearer {target.key}"},
        subprotocols=[protocol] if protocol else None,  # type: ignore[list-item]
        compression=None,
        max_size=None,
        max_queue=4,
        proxy=None,
    )
    socket.transport.pause_reading()
    await socket.send(first)
    try:
        yield
    finally:
        socket.transport.abort()


@contextlib.asynccontextmanager
async def over_sdk(target: ThisGateway, sandbox: dict[str, Any], code: str) -> AsyncIterator[None]:
    """The synchronous SDK, whose caller takes one piece and then no more."""
    from llmsafespace import Sandbox

    begun, over = threading.Event(), threading.Event()

    def read() -> None:
        with contextlib.suppress(Exception):  # it is cut off in the end
            box = Sandbox.connect(sandbox["id"], api_url=target.url, api_key=target.key)
            for _ in box.stream_code(code):
                begun.set()
                over.wait()
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert await asyncio.to_thread(begun.wait, 60), "the SDK got no output"
    try:
        yield
    finally:
        over.set()
        await asyncio.to_thread(thread.join, 30)


def _durable_request(code: str) -> bytes:
    import uuid

    from benchmarks.websocket_kernel import pack

    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": uuid.uuid4().hex}
    header |= {"username": "", "date": "2026-01-01T00:00:00Z", "version": "5.4"}
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    return pack("shell", header, content)


async def stalled(bench: Bench) -> Values:
    """Growth of the gateway's memory while 400 MiB wait at a stalled reader, MB, for each kind of stream."""
    count = max(40, int(400 * min(1.0, bench.scale)))
    code = DISPLAYS.format(n=count, size=1024 * 1024)
    text = f"for _ in range({count}): print('x' * {1024 * 1024 - 1})"
    seconds = max(2.0, 8.0 * min(1.0, bench.scale))

    async def gateway(target: HttpTarget) -> dict[str, Any]:
        grown: dict[str, Any] = {}
        for name, legacy in (("v1", False), ("legacy", True)):
            kernel_id = await target.create()
            grown[name] = await _grown(target, over_channels(target, kernel_id, code, legacy), seconds)
            with contextlib.suppress(Exception):  # a peer may hang at it until its own end
                await asyncio.wait_for(target.delete(kernel_id), 30)
        return grown

    async def own(target: ThisGateway) -> dict[str, Any]:
        grown = await gateway(target)
        request = json.dumps({"type": "execute", "content": text})
        opened: dict[str, Callable[[dict[str, Any]], contextlib.AbstractAsyncContextManager[None]]] = {
            "ndjson": lambda box: over_http(target, box, text, "application/x-ndjson"),
            "SSE": lambda box: over_http(target, box, text, "text/event-stream"),
            "sync SDK": lambda box: over_sdk(target, box, text),
            "durable": lambda box: over_websocket(
                target, f"/api/kernels/{box['kernelId']}/channels", _durable_request(code), DURABLE
            ),
            "/stream": lambda box: over_websocket(
                target, f"/api/v1/sandboxes/{box['id']}/stream", request, None
            ),
        }
        for name, open_ in opened.items():
            try:
                sandbox = await target.sandbox()
                grown[name] = await _grown(target, open_(sandbox), seconds)
                await target.end(sandbox["id"])
            except Exception as error:
                grown[name] = failed(error)["failed"]
        return grown

    peers = bench.gateways[len(bench.own) :]
    return await bench.each(bench.own, own) | await bench.each(peers, gateway)


async def _grown(
    target: HttpTarget, opened: contextlib.AbstractAsyncContextManager[None], seconds: float
) -> float:
    await target.settled()
    async with Peaks(gateway=[target.usage()]) as peaks, opened:
        await asyncio.sleep(seconds)
    return peaks.grown("gateway")


# -- bursts and restarts -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def another(target: ThisGateway, warm: int) -> AsyncIterator[ThisGateway]:
    """A further gateway of the same sources, with a pool of that size and a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="lsp-bench-"))
    folder.chmod(0o755)
    made = target.sibling(folder, warm)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _created_at_once(target: ThisGateway, count: int, **body: Any) -> list[float]:
    """How long each of `count` creates took to its first result, in ms; they are ended afterwards."""

    async def one() -> tuple[float, str]:
        began = time.perf_counter()
        sandbox = await target.sandbox(**body)
        kernel = await target.connect(sandbox["kernelId"])
        await kernel.execute("1")
        taken = (time.perf_counter() - began) * 1000
        await kernel.close()
        return taken, sandbox["id"]

    made = await asyncio.gather(*(one() for _ in range(count)))
    await asyncio.gather(*(target.end(name) for _, name in made))
    return [taken for taken, _ in made]


async def burst(bench: Bench) -> Values:
    """30 creates at once on a pool of 5: p50, p95 ms, s until it is full; the same 30 cold."""
    count = max(6, int(30 * min(1.0, bench.scale)))

    async def own(target: ThisGateway) -> dict[str, float]:
        async with another(target, 5) as busy:
            pooled = await _created_at_once(busy, count)
            began = time.perf_counter()
            await busy.settled()
            full = time.perf_counter() - began
        async with another(target, 0) as idle:
            cold = await _created_at_once(idle, count, useWarmPool=False)
        return {
            "p50": percentile(pooled, 0.5),
            "p95": percentile(pooled, 0.95),
            "full s": full,
            "cold p50": percentile(cold, 0.5),
            "cold p95": percentile(cold, 0.95),
        }

    return await bench.each(bench.own, own)


async def reconnect(bench: Bench) -> Values:
    """A gateway restarts under a client that streams: ms until the next output, until it serves."""
    from llmsafespace import AsyncSandbox

    code = "import time\nfor n in range(100_000):\n    print(n, flush=True)\n    time.sleep(0.01)"

    async def own(target: ThisGateway) -> dict[str, float]:
        async with another(target, 1) as restarted:
            sandbox = await AsyncSandbox.create(
                api_url=restarted.url, api_key=restarted.key, runtime="python"
            )
            last = 0.0

            async def read() -> None:
                nonlocal last
                async for _ in sandbox.stream_code(code):
                    last = time.perf_counter()

            reading = asyncio.create_task(read())
            while not last:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert restarted.process is not None
            restarted.process.kill()
            await asyncio.to_thread(restarted.process.wait)
            began = time.perf_counter()
            await restarted.serve()
            serves = time.perf_counter() - began
            while last < began + serves:
                assert not reading.done(), reading.exception()
                await asyncio.sleep(0.001)
            taken = last - began
            reading.cancel()
            await asyncio.wait([reading])
            with contextlib.suppress(Exception):
                await sandbox.close()
            return {"output": taken * 1000, "serves": serves * 1000}

    return await bench.each(bench.own, own)


LOAD_ROWS: dict[str, Callable[[Bench], Awaitable[Values]]] = {
    "flood": flood,
    "stalled": stalled,
    "burst": burst,
    "reconnect": reconnect,
}
