"""The events of an execution over HTTP: of a command, of packages, or of code that another client runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx
import msgspec

from llmsafespace import events, patience
from llmsafespace.errors import GatewayUnavailable, SandboxEnded, SandboxError, SandboxTimeout
from llmsafespace.events import End, Event
from llmsafespace.outputs import AsyncOutput
from llmsafespace.patience import Patience
from llmsafespace.transport import API, Transport, last_sign, segment

_LOOKS = (0.0, 0.2, 0.5, 1.0)  # seconds before each look whether an execution ended with its sandbox
Leave = Callable[[str], Awaitable[None]]


def followed(
    transport: Transport,
    sandbox_id: str,
    execution_id: str,
    *,
    after: int = 0,
    request: dict[str, Any] | None = None,
    leave: Leave | None = None,
) -> AsyncOutput:
    """The output that `follow` reads, from the first iteration on. Leaving it calls `leave`."""
    source = _Followed(follow(transport, sandbox_id, execution_id, after=after, request=request), leave)
    return AsyncOutput(execution_id, source.batches(execution_id), detach=source.detach)


class _Followed:
    """The events of an execution, and what happens when they are not read to the end."""

    def __init__(self, source: AsyncGenerator[Sequence[Event], None], leave: Leave | None) -> None:
        self._source = source
        self._leave = leave

    def detach(self) -> None:
        """Let it go on when its events are left."""
        self._leave = None

    async def batches(self, execution_id: str) -> AsyncGenerator[Sequence[Event], None]:
        """The events as they come."""
        over = False
        try:
            async with contextlib.aclosing(self._source) as source:
                async for batch in source:
                    over = isinstance(batch[-1], End)
                    yield batch
        except SandboxError:
            over = True  # refused, or out of reach
            raise
        finally:
            if not over and self._leave is not None:
                await self._leave(execution_id)


async def follow(
    transport: Transport,
    sandbox_id: str,
    execution_id: str,
    *,
    after: int = 0,
    request: dict[str, Any] | None = None,
) -> AsyncGenerator[Sequence[Event], None]:
    """The events of an execution over HTTP, from behind `after`, going on after a lost connection.

    `request` (a body of POST …/execute that carries the id) starts it first, unless it runs already.
    """
    base = f"{API}/sandboxes/{segment(sandbox_id)}"
    time_left = Patience(transport)
    accept = {"Accept": "application/x-ndjson", "Content-Type": "application/json"}
    while True:
        if request is not None:
            call = transport.stream(
                "POST", f"{base}/execute", content=msgspec.json.encode(request), headers=accept
            )
        else:
            path = f"{base}/executions/{segment(execution_id)}/events"
            call = transport.stream("GET", path, params={"after": after}, headers=accept)
        problem: Exception | None = None
        began = alive = patience.now()
        try:
            async with call as response:
                request = None
                async for line in _lines(response):
                    alive = patience.now()
                    event = events.from_line(line)
                    if event is None or (event.seq and event.seq <= after and not isinstance(event, End)):
                        continue
                    after = max(after, event.seq)
                    time_left.heard()
                    if isinstance(event, End):
                        await check_alive(transport, base, event.end)
                    yield [event]
                    if isinstance(event, End):
                        return
        except httpx.TransportError as error:
            transport.note_break(error)
            problem, alive = error, last_sign(error, alive, began)
        except GatewayUnavailable as error:
            problem = error
        await time_left.wait(problem, held=alive - began)


async def check_alive(transport: Transport, base: str, end: str) -> None:
    """Raise SandboxEnded when an execution that ended in this way did so with its sandbox.

    What is "aborted" may be so before the gateway has stored the sandbox's end: that is waited for a while.
    """
    for pause in {"aborted": _LOOKS, "kernel_died": _LOOKS[:1]}.get(end, ()):
        await asyncio.sleep(pause)
        try:
            document = await transport.request("GET", base)
        except (GatewayUnavailable, SandboxTimeout):
            return
        if document.get("status") == "ended":
            why = document.get("end") or "terminated"
            raise SandboxEnded(f"the sandbox has ended: {why}", code="gone", details={"end": why})


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of a body. Only a newline ends one: text may have other separators in it (U+2028, say)."""
    pieces: list[bytes] = []
    async for piece in response.aiter_bytes():
        *lines, rest = piece.split(b"\n")
        for line in lines:
            pieces.append(line)
            yield b"".join(pieces)
            pieces = []
        if rest:
            pieces.append(rest)
