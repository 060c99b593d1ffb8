"""Gateways restart one after the other and the operator hands over, while the SDK's stream goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest

from llmsafespace import AsyncSandbox, Execution, Result, events
from tests import postgres
from tests.cluster.support import Kubectl, eventually, eventually_async
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import Sandboxes
from tests.conftest import Gateway
from tests.drill import Drill

WISH: dict[str, Any] = {
    "runtime": "python:3.11",
    "resources": {"cpu": "250m", "memory": "256Mi", "ephemeralStorage": "256Mi"},
}
POOL = "pair"
SOME = 5  # lines, as a sign that the stream goes on
COUNT = """
import os, time
n = 0
while not os.path.exists("enough") and n < 6000:  # five minutes at most
    print(n, flush=True)
    n += 1
    time.sleep(0.05)
n
"""


class Service:
    """What a Service is to clients: one address, behind which each connection finds a gateway that listens.

    Gateways take turns. A connection lasts as long as its gateway keeps it; `streams` has where each
    websocket went.
    """

    def __init__(self, gateways: list[Gateway]) -> None:
        self.url = ""
        self.streams: list[Gateway] = []
        self._gateways = gateways
        self._turn = 0
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._gateways:
            self._turn += 1
            gateway = self._gateways[self._turn % len(self._gateways)]
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            except ConnectionRefusedError:
                continue
            head = await reader.read(65536)
            far_writer.write(head)
            if b"upgrade: websocket" in head.lower():
                self.streams.append(gateway)
            ways = {
                asyncio.ensure_future(_pump(*way)) for way in ((reader, far_writer), (far_reader, writer))
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                far_writer.close()
                for way in ways:
                    way.cancel()
            return


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class Listener:
    """Follows a run of COUNT to its end."""

    def __init__(self, sandbox: AsyncSandbox) -> None:
        self.events: list[events.Event] = []
        self._output = sandbox.stream_code(COUNT)
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self._output.events():
            self.events.append(event)

    async def goes_on(self) -> None:
        """Return when some more lines have come. Raises AssertionError when they do not."""
        before = len(self.events)

        async def more() -> bool:
            if self._task.done():
                self._task.result()
            return len(self.events) >= before + SOME

        await eventually_async(more, what="lines that go on")

    async def end(self) -> Execution:
        await asyncio.wait_for(self._task, 60)
        return self._output.execution

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    runtime("python")
    made = install(claim_grace=3.0)
    for _ in range(2):
        made.operator()
    return made


@contextmanager
def store() -> Iterator[dict[str, str]]:
    """Settings of gateways that share a store: PostgreSQL, and SQLite where there is no server."""
    with postgres.schema() if postgres.SERVER else nullcontext("") as url:
        yield {"database_url": url} if url else {}


@pytest.fixture(scope="module")
def gateways(installation: Installation) -> Iterator[list[Gateway]]:
    """Two that share nothing but the store, if that is PostgreSQL; otherwise its folder."""
    with store() as settings:
        folders = ("first", "second") if settings else ("gateway", "gateway")
        made = [installation.gateway(folder=folder, **settings) for folder in folders]
        yield made
        for gateway in made:
            gateway.stop()


@pytest.fixture(scope="module")
def key(gateways: list[Gateway]) -> str:
    return gateways[0].admin_key  # printed by the first one that opened the empty store


@pytest.fixture
async def service(gateways: list[Gateway]) -> AsyncIterator[Service]:
    """In front of both gateways."""
    made = Service(gateways)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(scope="module")
def objects(installation: Installation, kubectl: Kubectl) -> Sandboxes:
    made = Sandboxes(installation, kubectl)
    made.pool(POOL, 2, WISH["resources"])
    return made


async def test_a_stream_goes_on_over_restarts_and_handover_with_every_line_once(
    installation: Installation, gateways: list[Gateway], objects: Sandboxes, service: Service, key: str
) -> None:
    async with AsyncSandbox(**WISH, api_url=service.url, api_key=key) as sandbox:
        listener = Listener(sandbox)
        try:
            await listener.goes_on()
            for _ in gateways:
                gateway = service.streams[-1]  # the one that the stream goes through
                assert await asyncio.to_thread(gateway.stop) == 0
                await listener.goes_on()
                assert service.streams[-1] is not gateway
                await asyncio.to_thread(gateway.start)
                await listener.goes_on()
            await hand_over(installation, objects, service.url, key)
            await listener.goes_on()
            await sandbox.files.write("enough", "")
            execution = await listener.end()
        finally:
            await listener.leave()
        (result,) = execution.results
        is_every_line_once(execution, result, listener.events)
        assert (await sandbox.run_code("n")).text == result.text
    await asyncio.to_thread(eventually, lambda: objects.gone(sandbox.id))


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(3, marks=pytest.mark.timeout(600)),
        pytest.param(300, marks=[pytest.mark.heavy, pytest.mark.timeout(8 * 3600)]),
    ],
)
async def test_no_client_notices_a_rolling_restart(
    gateways: list[Gateway], objects: Sandboxes, service: Service, key: str, rounds: int
) -> None:
    """Both replicas in turn, under clients that create, run and terminate, over old and young connections."""

    def roll() -> None:
        for gateway in gateways:
            assert gateway.stop() == 0
            gateway.start()

    drill = Drill(service.url, key, **WISH)
    await drill.during([roll] * rounds)
    assert drill.failures == []


async def hand_over(installation: Installation, objects: Sandboxes, url: str, key: str) -> None:
    """The operator that leads stops; a sandbox is claimed meanwhile, and the other operator takes over."""
    full = await asyncio.to_thread(eventually, lambda: len(objects.ready(POOL)) == 2, what="a full pool")
    assert full
    await asyncio.to_thread(eventually, lambda: sum(each.leads for each in installation.operators) == 1)
    (leader,) = [each for each in installation.operators if each.leads]
    (other,) = [each for each in installation.operators if each is not leader]
    stopping = asyncio.create_task(asyncio.to_thread(leader.stop))
    async with AsyncSandbox(**WISH, api_url=url, api_key=key) as second:
        assert second.start.kind == "warm"
        assert (await second.run_code("print(6 * 7)")).stdout == "42\n"
        assert await stopping == 0
        await asyncio.to_thread(eventually, lambda: other.leads, what="the other operator leading")
        assert (await second.run_code("print('still there')")).stdout == "still there\n"
    await asyncio.to_thread(eventually, lambda: objects.gone(second.id), what="nothing left of it")
    await asyncio.to_thread(eventually, lambda: len(objects.ready(POOL)) == 2, what="a pool filled again")


def is_every_line_once(execution: Execution, result: Result, told: list[events.Event]) -> None:
    numbers = [event.seq for event in told]
    assert numbers == sorted(set(numbers))
    assert execution.end == "ok"
    assert execution.missed == 0
    assert execution.stdout.splitlines() == [str(n) for n in range(int(result.text or "0"))]
