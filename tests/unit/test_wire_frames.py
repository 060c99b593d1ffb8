"""Frames arrive whole and in order however the bytes are cut, held or released on the way."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from typing import Any

import pytest
import uvloop

from llmsafespace_protocol.frames import FrameKind, FrameStream

SIZES = [0, 1, 5, 1000, 65_535, 65_536, 65_537, 262_139, 262_144, 300_000, 2_097_152, 2_097_153, 5_000_000, 3]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a coroutine on a loop of either kind: the agent has the one, the gateway the other."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


def frames() -> list[tuple[int, bytes]]:
    kinds = (FrameKind.KERNEL, FrameKind.DATA, FrameKind.JSON)
    return [(kinds[n % 3], random.Random(size).randbytes(size)) for n, size in enumerate(SIZES)]


async def connected() -> tuple[FrameStream, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(FrameStream, sock=ours)
    _, writer = await asyncio.open_connection(sock=theirs)
    return stream, writer


async def write(writer: asyncio.StreamWriter, cuts: random.Random) -> None:
    data = b"".join(struct.pack(">IB", len(body), kind) + body for kind, body in frames())
    while data:
        size = cuts.choice((1, 4, 5, 7, 1000, 65_536, 1_000_000, 10_000_000))
        writer.write(data[:size])
        data = data[size:]
        await writer.drain()
        if cuts.random() < 0.5:
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(3))
def test_frames_are_whole_however_they_are_cut(run: Any, seed: int) -> None:
    async def scene() -> None:
        stream, writer = await connected()
        writing = asyncio.ensure_future(write(writer, random.Random(seed)))
        whims = random.Random(seed + 100)
        got: list[tuple[int, bytes]] = []
        done = asyncio.Event()

        def take(kind: int, body: bytes) -> None:
            got.append((kind, bytes(body)))
            if kind != FrameKind.KERNEL:
                assert type(body) is bytes
            if len(got) == len(frames()):
                done.set()
            elif whims.random() < 0.4:
                stream.hold()
                asyncio.get_running_loop().call_later(whims.choice((0, 0.001)), stream.release)

        stream.receive(take)
        await asyncio.wait_for(done.wait(), 30)
        await writing
        assert got == frames()
        stream.abort()
        writer.close()

    run(scene())


def test_frames_one_at_a_time(run: Any) -> None:
    async def scene() -> None:
        stream, writer = await connected()
        writing = asyncio.ensure_future(write(writer, random.Random(1)))
        for wanted in frames():
            kind, body = await asyncio.wait_for(stream.next_frame(), 30)
            assert (kind, bytes(body)) == wanted
        await writing
        writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(stream.next_frame(), 30)

    run(scene())


def test_what_is_sent_is_what_arrives(run: Any) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        _, one = await loop.create_connection(FrameStream, sock=ours)
        _, other = await loop.create_connection(FrameStream, sock=theirs)

        async def send() -> None:
            for kind, body in frames():
                one.send(kind, body[:8], memoryview(body)[8:])
                await one.drain()

        sending = asyncio.ensure_future(send())
        for wanted in frames():
            kind, body = await asyncio.wait_for(other.next_frame(), 30)
            assert (kind, bytes(body)) == wanted
        await sending
        one.abort()
        other.abort()

    run(scene())


def test_a_peers_word_alone_reserves_little(run: Any) -> None:
    async def scene() -> None:
        stream, writer = await connected()
        stream.receive(lambda kind, body: None)
        writer.write(struct.pack(">IB", 64 * 1024 * 1024, FrameKind.KERNEL) + b"x")
        await writer.drain()
        async with asyncio.timeout(10):
            while stream._body is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert len(stream._body) < 4_000_000
        writer.close()
        await asyncio.wait_for(stream.wait_closed(), 10)

    run(scene())


def test_a_frame_over_the_limit_ends_the_connection(run: Any) -> None:
    async def scene() -> None:
        stream, writer = await connected()
        stream.receive(lambda kind, body: None)
        writer.write(struct.pack(">IB", 64 * 1024 * 1024 + 1, FrameKind.KERNEL))
        await asyncio.wait_for(stream.wait_closed(), 10)
        writer.close()

    run(scene())
