"""A sandbox that looks up names whose servers never answer is alone with that."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.base import EgressRule
from llmsafespace_gateway.egress import EgressProxy
from llmsafespace_gateway.egress.connection import Limits
from llmsafespace_gateway.egress.lookups import Lookups, TooManyLookups
from llmsafespace_gateway.egress.service import EgressService
from llmsafespace_kube.claims.egress_token import EgressGrant, GrantedRule, sign
from llmsafespace_protocol.egress import preamble

DEADLINE = 20.0
QUICK = "quick.example"
KEY = b"k" * 32
EXITS = """
import asyncio, socket, time
from llmsafespace_gateway.egress.lookups import Lookups
socket.getaddrinfo = lambda *_, **__: time.sleep(600)
async def main():
    try:
        async with asyncio.timeout(0.1):
            await Lookups(1).addresses("sb-1", "silent.example")
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""


class Resolver:
    """Instead of the system's: names of `silent.example` get no answer before `answer` is set."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        self.asked.append(host)
        if host != QUICK:
            self.answer.wait(DEADLINE * 2)
        return [(2, 1, 6, "", ("127.0.0.1", 0))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.answer.set()


@pytest.fixture
async def proxy(
    tmp_path: Path, resolver: Resolver, request: pytest.FixtureRequest
) -> AsyncIterator[EgressProxy]:
    made = EgressProxy(limits=getattr(request, "param", None))
    for key in ("sb-1", "sb-2"):
        (tmp_path / key).mkdir()
        await made.open(key, tmp_path / key, [EgressRule("*.silent.example"), EgressRule(QUICK)])
    yield made
    await made.stop()


async def ask(folder: Path, host: str) -> bytes:
    """The proxy's whole answer; a name that was resolved has no public address."""
    reader, writer = await asyncio.open_unix_connection(str(folder / "proxy.sock"))
    return await asked(reader, writer, host)


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> bytes:
    writer.write(f"CONNECT {host}:443 HTTP/1.0\r\n\r\n".encode())
    try:
        return await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()


def statuses(answers: list[bytes]) -> list[bytes]:
    return sorted(answer.split(b" ")[1] for answer in answers)


async def ended(tasks: list[asyncio.Task[bytes]], count: int) -> None:
    done = asyncio.as_completed(tasks, timeout=DEADLINE)
    for _ in range(count):
        await next(done)


async def test_names_without_an_answer_do_not_keep_other_sandboxes_from_theirs(
    tmp_path: Path, proxy: EgressProxy, resolver: Resolver
) -> None:
    bad = [asyncio.create_task(ask(tmp_path / "sb-1", f"n{n}.silent.example")) for n in range(32)]
    await ended(bad, 24)
    assert b"no public address" in await ask(tmp_path / "sb-2", QUICK)
    resolver.answer.set()
    answers = await asyncio.gather(*bad)
    assert statuses(answers) == [b"403"] * 8 + [b"503"] * 24
    assert sum(b"too many names of this sandbox" in answer for answer in answers) == 24
    assert len(resolver.asked) == 9


@pytest.mark.parametrize("proxy", [Limits(lookups=2, resolve=0.1)], indirect=True)
async def test_a_lookup_counts_until_its_thread_ends(
    tmp_path: Path, proxy: EgressProxy, resolver: Resolver
) -> None:
    for n in range(2):
        assert (await ask(tmp_path / "sb-1", f"n{n}.silent.example")).startswith(b"HTTP/1.1 502 ")
    assert (await ask(tmp_path / "sb-1", QUICK)).startswith(b"HTTP/1.1 503 ")
    resolver.answer.set()
    async with asyncio.timeout(DEADLINE):
        while b"no public" not in await ask(tmp_path / "sb-1", QUICK):  # noqa: ASYNC110  # another thread
            await asyncio.sleep(0.01)


async def test_connections_that_ask_for_one_name_share_the_lookup(
    tmp_path: Path, proxy: EgressProxy, resolver: Resolver
) -> None:
    same = [asyncio.create_task(ask(tmp_path / "sb-1", "n.silent.example")) for _ in range(20)]
    other = asyncio.create_task(ask(tmp_path / "sb-2", "n.silent.example"))
    async with asyncio.timeout(DEADLINE):
        while len(resolver.asked) < 2:  # noqa: ASYNC110  # another thread
            await asyncio.sleep(0.01)
    resolver.answer.set()
    assert statuses(await asyncio.gather(*same, other)) == [b"403"] * 21


async def test_the_service_tells_sandboxes_apart_by_their_tokens(resolver: Resolver) -> None:
    service = EgressService(KEY, (), limits=Limits(lookups=1))
    port = await service.start(0, "127.0.0.1")

    async def ask(sandbox: str, host: str) -> bytes:
        rules = (GrantedRule("*.silent.example"), GrantedRule(QUICK))
        grant = EgressGrant(sandbox, "127.0.0.1", rules, time.time() + 600)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(preamble(sign(KEY, grant)))
        return await asked(reader, writer, host)

    silent = [asyncio.create_task(ask("sb-1", f"n{n}.silent.example")) for n in range(2)]
    await ended(silent, 1)
    assert b"no public address" in await ask("sb-2", QUICK)
    resolver.answer.set()
    assert statuses(await asyncio.gather(*silent)) == [b"403", b"503"]
    await service.drain(0)


async def test_all_sandboxes_together_are_bounded(resolver: Resolver) -> None:
    lookups = Lookups(1, together=2)
    running = [asyncio.create_task(lookups.addresses(f"sb-{n}", "n.silent.example")) for n in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyLookups, match="the proxy"):
        await lookups.addresses("sb-3", QUICK)
    resolver.answer.set()
    assert await asyncio.wait_for(asyncio.gather(*running), DEADLINE) == [["127.0.0.1"]] * 2
    assert await asyncio.wait_for(lookups.addresses("sb-3", QUICK), DEADLINE) == ["127.0.0.1"]


async def test_no_more_threads_is_told_and_forgotten(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lookups = Lookups(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        with pytest.raises(TooManyLookups, match="the proxy"):
            await lookups.addresses("sb-1", QUICK)
    assert await asyncio.wait_for(lookups.addresses("sb-1", QUICK), DEADLINE) == ["127.0.0.1"]


def test_a_name_without_an_answer_does_not_hold_up_the_end_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=DEADLINE * 2)
    assert (done.returncode, done.stdout) == (0, "given up\n"), done.stderr
