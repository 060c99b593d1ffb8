"""A gateway that is told to stop: what runs comes to its end, and every client hears where it stands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.conftest import Gateway, make_gateway

SIZE = 4_000_000


@pytest.fixture
def stopping(data_root: Path) -> Iterator[Gateway]:
    """A gateway for one test to stop."""
    own = data_root / f"drain-{os.urandom(4).hex()}"
    own.mkdir()
    gateway = make_gateway(own, warm_pools=[], drain_timeout=60.0)
    yield gateway
    if gateway._process is not None and gateway._process.poll() is not None:
        gateway.start()
    gateway.end_all()


@pytest.fixture
async def api(stopping: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {stopping.admin_key}"}
    async with httpx.AsyncClient(base_url=f"{stopping.url}/api/v1", headers=headers, timeout=120) as client:
        yield client


async def made(api: httpx.AsyncClient) -> str:
    answer = await api.post("/sandboxes", json={"runtime": "python"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def ended(gateway: Gateway) -> float:
    """Wait for the process; the seconds that it took."""
    assert gateway._process is not None
    began = time.monotonic()
    await asyncio.to_thread(gateway._process.wait, 90)
    assert gateway._process.returncode == 0
    return time.monotonic() - began


async def test_a_create_in_flight_is_answered(stopping: Gateway, api: httpx.AsyncClient) -> None:
    """A cold start takes seconds. The sandbox is there afterwards, and only that one."""
    creating = asyncio.create_task(api.post("/sandboxes", json={"runtime": "python"}))
    begun = Path(stopping.data_dir, "sandboxes")
    while not list(begun.glob("*")):
        assert not creating.done(), creating.result().text
        await asyncio.sleep(0.01)
    os.kill(stopping.pid, signal.SIGTERM)
    answer = await creating
    assert answer.status_code == 201, answer.text
    assert answer.headers["Connection"] == "close"
    await ended(stopping)
    await asyncio.to_thread(stopping.start)
    listed = (await api.get("/sandboxes", params={"status": "running"})).json()["items"]
    assert [each["id"] for each in listed] == [answer.json()["id"]]


async def test_what_runs_ends_and_what_waits_is_sent_away(stopping: Gateway, api: httpx.AsyncClient) -> None:
    """An execution, its stream, an upload, a download; then idle connections and both kinds of websocket."""
    sandbox = await made(api)
    base = f"/sandboxes/{sandbox}"
    content = os.urandom(SIZE)
    assert (await api.put(f"{base}/files/there", content=content)).status_code == 200
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", stopping.port)
    idle.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
    await idle_reader.readuntil(b'"}')
    signalled = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield content[: SIZE // 2]
        await signalled.wait()
        yield content[SIZE // 2 :]

    async def download() -> bytes:
        got = b""
        async with api.stream("GET", f"{base}/files/there") as answer:
            async for piece in answer.aiter_raw(65536):
                got += piece
                if len(got) < SIZE // 2:
                    continue
                await signalled.wait()
        return got

    code = "import time\nprint('first', flush=True)\ntime.sleep(3)\nprint('last')"
    started = asyncio.Event()

    async def stream() -> list[dict[str, Any]]:
        body = {"content": code, "executionId": "streamed"}
        headers = {"Accept": "application/x-ndjson"}
        events = []
        async with api.stream("POST", f"{base}/execute", json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                events.append(json.loads(line))
                started.set()
        return events

    streamed, downloaded = asyncio.create_task(stream()), asyncio.create_task(download())
    sent = asyncio.create_task(api.put(f"{base}/files/sent", content=pieces()))
    headers = {"Authorization": f"Bearer {stopping.admin_key}"}
    websocket = f"ws://127.0.0.1:{stopping.port}/api"
    kernel = (await api.get(base)).json()["kernelId"]
    channels = await connect(f"{websocket}/kernels/{kernel}/channels", additional_headers=headers, proxy=None)
    followed = await connect(f"{websocket}/v1{base}/stream", additional_headers=headers, proxy=None)
    await asyncio.wait_for(started.wait(), 60)
    os.kill(stopping.pid, signal.SIGTERM)
    for socket in (channels, followed):
        await asyncio.wait_for(socket.wait_closed(), 3)
        assert socket.close_code == 1012
    assert await asyncio.wait_for(idle_reader.read(), 3) == b""
    idle.close()
    with pytest.raises(OSError):  # noqa: PT011
        await asyncio.open_connection("127.0.0.1", stopping.port)
    signalled.set()
    events, got, uploaded = await asyncio.gather(streamed, downloaded, sent)
    assert [each.get("end") for each in events][-1] == "ok"
    assert "last" in json.dumps(events)
    assert got == content
    assert uploaded.status_code == 200
    assert uploaded.json()["size"] == SIZE
    assert await ended(stopping) < 10  # not the whole of drain_timeout


async def test_readiness_goes_first(data_root: Path) -> None:
    """With a delay the gateway still takes requests while it says that it is about to stop."""
    own = data_root / f"delay-{os.urandom(4).hex()}"
    own.mkdir()
    gateway = make_gateway(own, warm_pools=[], drain_delay=2.0)
    os.kill(gateway.pid, signal.SIGTERM)
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        while (answer := await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert answer.status_code == 503
        assert answer.json()["error"]["details"] == {"problems": ["draining"]}
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/api/v1/openapi.json")).status_code == 200
    await ended(gateway)


async def test_what_does_not_end_is_cut_off(data_root: Path) -> None:
    own = data_root / f"cut-{os.urandom(4).hex()}"
    own.mkdir()
    gateway = make_gateway(own, warm_pools=[], drain_timeout=0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(
        b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    )
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # the gateway waits for the body
    os.kill(gateway.pid, signal.SIGTERM)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await ended(gateway)
