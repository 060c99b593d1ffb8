"""The events of an execution over HTTP: of a command, of packages, or of code that another client runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
import msgspec

from llmsafespace import events, patience
from llmsafespace.errors import GatewayUnavailable
from llmsafespace.events import End, Event
from llmsafespace.outputs import AsyncOutput
from llmsafespace.patience import Patience
from llmsafespace.transport import API, Transport, last_sign, segment


def followed(
    transport: Transport,
    sandbox_id: str,
    execution_id: str,
    *,
    after: int = 0,
    request: dict[str, Any] | None = None,
) -> AsyncOutput:
    """The output that `follow` reads, from the first iteration on."""
    batches = follow(transport, sandbox_id, execution_id, after=after, request=request)
    return AsyncOutput(execution_id, batches)


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
                    yield [event]
                    if isinstance(event, End):
                        return
        except httpx.TransportError as error:
            transport.note_break(error)
            problem, alive = error, last_sign(error, alive, began)
        except GatewayUnavailable as error:
            problem = error
        await time_left.wait(problem, held=alive - began)


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
