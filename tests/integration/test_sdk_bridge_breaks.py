"""A notebook's kernel outlives every break of its bridge's connection, whatever the connection's age."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import LocalPortCache

from llmsafespace import channel, patience, transport
from llmsafespace.jupyter.bridge import Bridge
from tests.conftest import Gateway
from tests.integration.test_sdk_breaks import BREAKS, Break
from tests.road import Road

every_break = pytest.mark.parametrize("break_", BREAKS, ids=lambda each: each.__name__)
PORTS = ("shell_port", "iopub_port", "stdin_port", "hb_port", "control_port")


@pytest.fixture
def road(gateway: Gateway) -> Iterator[Road]:
    made = Road(gateway.port)
    yield made
    made.end()


@pytest.fixture
def age(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make everything that exists older than any limit."""
    jumped = [0.0]
    monkeypatch.setattr(patience, "now", lambda: time.monotonic() + jumped[0])
    monkeypatch.setattr(channel, "PING_AFTER", 0.3)
    monkeypatch.setattr(channel, "PONG_WITHIN", 0.7)
    monkeypatch.setattr(transport, "ANSWER_SOON", 1.0)
    monkeypatch.setattr(transport, "ANSWER_LATER", 1.5)

    def jump() -> None:
        jumped[0] += 10 * patience.RETRY_FOR

    return jump


class Kernel:
    """A bridge in this process, and a stock client on its sockets."""

    def __init__(self, url: str, key: str) -> None:
        self.told: list[dict[str, Any]] = []
        cache = LocalPortCache.instance()
        connection: dict[str, Any] = {name: cache.find_available_port("127.0.0.1") for name in PORTS}
        connection |= {"ip": "127.0.0.1", "transport": "tcp", "key": "k", "signature_scheme": "hmac-sha256"}
        wish = {"url": url, "key": key, "connection": connection, "sandbox": {"runtime": "python"}}
        self.bridge = Bridge(wish, self.told.append)
        self.client = AsyncKernelClient()
        self.client.load_connection_info({**connection, "key": b"k"})

    async def start(self) -> None:
        await self.bridge.start()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=60)

    async def run(self, code: str) -> tuple[str, str]:
        """The status and the text of a cell."""
        text: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                text.append(message["content"]["text"])

        reply = await self.client.execute_interactive(code, timeout=60, output_hook=hear)
        return reply["content"]["status"], "".join(text)

    async def close(self) -> None:
        self.client.stop_channels()
        await self.bridge.close(terminate=True)


@pytest.fixture
async def kernel(road: Road, gateway: Gateway, age: Callable[[], None]) -> AsyncIterator[Kernel]:
    made = Kernel(road.url, gateway.admin_key)
    await made.start()
    yield made
    await made.close()


@every_break
async def test_a_cell_that_runs(kernel: Kernel, road: Road, age: Callable[[], None], break_: Break) -> None:
    code = (
        "count = globals().get('count', 0) + 1\nimport time\nfor i in range(30): print(i); time.sleep(0.05)"
    )
    running = asyncio.create_task(kernel.run(code))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(break_, road, age)
    assert await running == ("ok", "".join(f"{number}\n" for number in range(30)))
    assert await kernel.run("print(count)") == ("ok", "1\n")
    assert kernel.told == []


@every_break
async def test_a_cell_that_is_sent_afterwards(
    kernel: Kernel, road: Road, age: Callable[[], None], break_: Break
) -> None:
    assert await kernel.run("value = 5") == ("ok", "")
    await asyncio.to_thread(break_, road, age)
    assert await kernel.run("value += 1; print(value)") == ("ok", "6\n")
    await asyncio.to_thread(break_, road, age)
    await kernel.bridge.interrupt()
    assert await kernel.run("print(value)") == ("ok", "6\n")
    await asyncio.to_thread(break_, road, age)
    await kernel.bridge.restart()
    assert await kernel.run("print('value' in globals())") == ("ok", "False\n")
    assert all(event["event"] != "ended" for event in kernel.told)


async def test_a_gateway_that_stays_away_is_a_dead_kernel(
    kernel: Kernel, road: Road, age: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_FOR", 0.5)
    age()
    road.close()
    road.cut()
    for _ in range(200):
        if kernel.told:
            break
        await asyncio.sleep(0.05)
    assert [event["event"] for event in kernel.told] == ["ended"]
    monkeypatch.setattr(patience, "RETRY_FOR", 60.0)
    road.open()
