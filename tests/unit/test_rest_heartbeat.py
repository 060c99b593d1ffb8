"""Streams of events have a heartbeat while nothing happens, and none beside what is sent anyway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import pytest

from llmsafespace_gateway.rest import handler
from llmsafespace_gateway.rest.handler import RestHandler


class Wire:
    """What `send` needs of a handler. A flush takes `taken` seconds, and must never begin during another."""

    def __init__(self, taken: float = 0.0) -> None:
        self.sent: list[bytes] = []
        self._taken = taken
        self._flushing = False

    def write(self, piece: bytes) -> None:
        self.sent.append(piece)

    async def flush(self) -> None:
        assert not self._flushing
        self._flushing = True
        await asyncio.sleep(self._taken)
        self._flushing = False

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        await work


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT", 0.02)


async def paused(*pauses: float) -> AsyncGenerator[bytes]:
    for pause in pauses:
        await asyncio.sleep(pause)
        yield b"x\n"


async def send(wire: Wire, pieces: AsyncGenerator[bytes], heartbeat: bytes = b"\n") -> bytes:
    await RestHandler.send(wire, pieces, heartbeat)  # type: ignore[arg-type]
    return b"".join(wire.sent)


async def test_silence_has_a_heartbeat() -> None:
    sent = await send(Wire(), paused(0.0, 0.2, 0.0))
    assert sent.startswith(b"x\n\n\n")
    assert sent.endswith(b"\nx\nx\n")
    assert sent.replace(b"\n", b"") == b"xxx"


async def test_none_where_none_is_wanted() -> None:
    assert await send(Wire(), paused(0.0, 0.1), b"") == b"x\nx\n"


async def test_a_client_that_does_not_take_it_is_sent_no_more() -> None:
    """While a flush waits for a slow reader nothing is added, and two flushes never overlap."""
    sent = await send(Wire(taken=0.1), paused(0.0, 0.0, 0.05))
    assert sent.count(b"x") == 3
    assert sent.count(b"\n\n") <= 2


async def test_it_ends_with_the_stream() -> None:
    wire = Wire()
    sent = await send(wire, paused(0.0))
    await asyncio.sleep(0.1)
    assert b"".join(wire.sent) == sent
