"""The proof against peers that do not keep to it: always a ProofError, and never a stream left open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import NoAnswer, ProofError, prove_as_agent, prove_as_gateway

TOKEN = b"t" * 32
NONSENSE = {
    "no JSON": b"\xff",
    "no UTF-8": b'{"version": 1, "nonce": "\xff", "proof": "\xff"}',
    "another type": b"[1]",
    "too deep": b'{"x":' + b"[" * 4000,
    "too long": b" " * 5000,
}


@contextlib.asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[tuple[FrameStream, FrameStream]]:
    """Two ends of one connection: ours and the peer's."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[FrameStream] = asyncio.Queue()

    class Incoming(FrameStream):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.put_nowait(self)

    server = await loop.create_unix_server(Incoming, str(folder / "socket"))
    _, peer = await loop.create_unix_connection(FrameStream, str(folder / "socket"))
    ours = await accepted.get()
    try:
        yield ours, peer
    finally:
        server.close()
        for each in (ours, peer):
            each.abort()


def prove(side: str, stream: FrameStream) -> Any:
    if side == "gateway":
        return prove_as_gateway(stream, TOKEN, {})
    return prove_as_agent(stream, TOKEN, "")


@pytest.mark.parametrize("said", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("side", ["gateway", "agent"])
async def test_nonsense_is_no_proof(tmp_path: Path, side: str, said: bytes) -> None:
    async with pair(tmp_path) as (ours, peer):
        peer.send(FrameKind.JSON, said)
        with pytest.raises(ProofError):
            await prove(side, ours)
        await asyncio.wait_for(ours.wait_closed(), 30)


@pytest.mark.parametrize("side", ["gateway", "agent"])
async def test_whoever_gives_up_waiting_leaves_no_stream(tmp_path: Path, side: str) -> None:
    async with pair(tmp_path) as (ours, _peer):
        task = asyncio.ensure_future(prove(side, ours))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ours.wait_closed(), 30)


async def test_both_sides_prove_themselves(tmp_path: Path) -> None:
    async with pair(tmp_path) as (ours, peer):
        _, opened = await asyncio.gather(prove_as_gateway(peer, TOKEN, {"kind": "rpc"}), prove("agent", ours))
        assert opened == {"kind": "rpc"}


@pytest.mark.parametrize("size", [1, 262_000, 263_000, 20_000_000])
async def test_what_a_stream_is_for_may_be_large(tmp_path: Path, size: int) -> None:
    wanted = {"kind": "execution", "code": "x" * size}
    async with pair(tmp_path) as (ours, peer):
        _, opened = await asyncio.gather(prove_as_gateway(peer, TOKEN, wanted), prove("agent", ours))
        assert opened == wanted
        peer.send(FrameKind.JSON, b"after")
        assert await asyncio.wait_for(ours.next_frame(), 30) == (FrameKind.JSON, b"after")


async def test_nobody_sends_much_before_their_proof(tmp_path: Path) -> None:
    async with pair(tmp_path) as (ours, peer):
        peer.send(FrameKind.JSON, b" " * 10_000_000)
        with pytest.raises(ProofError):
            await prove("agent", ours)
        await asyncio.wait_for(ours.wait_closed(), 30)
        assert ours._body is None


async def test_nobody_says_what_a_stream_is_for_without_a_proof(tmp_path: Path) -> None:
    async with pair(tmp_path) as (ours, peer):
        other = prove_as_gateway(peer, b"o" * 32, {"code": "x" * 300_000})
        done = await asyncio.gather(other, prove("agent", ours), return_exceptions=True)
        assert [type(each) for each in done] == [ProofError, NoAnswer]
