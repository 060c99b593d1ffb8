"""How a create answers: at once with the sandbox, or line by line with what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

import msgspec
from tornado.iostream import StreamClosedError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest.answers import as_error
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import NDJSON
from llmsafespace_gateway.rest.types import CreateEvent, ErrorBody, ProgressAnswer, SandboxAnswer
from llmsafespace_gateway.services.types import Progress, listening

# Seconds after which the last progress is sent again, so that no proxy closes the connection. Nothing is sent
# before the first progress, so that a failure can still have its own status.
REPEAT = 10.0


async def answered(call: RestHandler, work: Coroutine[None, None, SandboxAnswer]) -> SandboxAnswer | None:
    """The result of `work`; for a client that accepts NDJSON, after a line for each thing that it waits for.

    What fails before anything was waited for has its own status; afterwards the last line is the error.
    """
    if NDJSON not in call.request.headers.get("Accept", ""):
        return await work
    told: asyncio.Queue[Progress] = asyncio.Queue()
    with listening(told.put_nowait):
        task = asyncio.ensure_future(work)
    lines = _Lines(call)
    await _follow(task, told, lines)
    try:
        event = CreateEvent(sandbox=task.result())
    except Exception as error:
        if not lines.begun:
            raise
        event = CreateEvent(error=_body(error))
    await lines.send(event)
    call.finish()
    return None


async def _follow(task: asyncio.Future[SandboxAnswer], told: asyncio.Queue[Progress], lines: _Lines) -> None:
    last: Progress | None = None
    while not task.done():
        heard = asyncio.ensure_future(told.get())
        waiting: set[asyncio.Future[object]] = {task, heard}  # type: ignore[arg-type]
        await asyncio.wait(waiting, timeout=REPEAT, return_when=asyncio.FIRST_COMPLETED)
        if heard.done():
            last = heard.result()
        else:
            heard.cancel()
        if last is not None and not task.done():
            await lines.send(CreateEvent(progress=ProgressAnswer(reason=last.reason, message=last.message)))


class _Lines:
    """The lines of one answer. When its client is gone, what it asked for is made all the same."""

    def __init__(self, call: RestHandler) -> None:
        self._call = call
        self.begun = False

    async def send(self, event: CreateEvent) -> None:
        if not self.begun:
            self.begun = True
            self._call.set_status(200)
            self._call.set_header("Content-Type", NDJSON)
            self._call.set_header("X-Accel-Buffering", "no")
        self._call.write(msgspec.json.encode(event) + b"\n")
        with contextlib.suppress(StreamClosedError):
            await self._call.flush()


def _body(error: Exception) -> ErrorBody:
    known: ApiError = as_error(500, (type(error), error, None))
    return ErrorBody(code=known.code, message=known.message, details=known.details)
