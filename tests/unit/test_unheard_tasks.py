"""No task ends with an exception that nobody takes when the one who waited for it has left."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.iostream import StreamClosedError

from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.services.runs import heard
from llmsafespace_gateway.store import sqlite


@pytest.fixture(autouse=True)
async def unheard() -> AsyncIterator[None]:
    """What the event loop is told of tasks that were collected with an exception in them."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    yield
    await asyncio.sleep(0)
    gc.collect()
    loop.set_exception_handler(None)
    assert told == []


async def fails_when_cancelled(error: Exception, begun: asyncio.Event | None = None) -> None:
    try:
        if begun is not None:
            begun.set()
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise error from None


class Request:
    """What `while_connected` needs of a handler."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self._right_lost = False

    def _watch_right(self) -> Callable[[], None]:
        return lambda: None


async def test_a_client_that_leaves_while_it_is_written_to() -> None:
    request, begun = Request(), asyncio.Event()
    work = fails_when_cancelled(StreamClosedError(), begun)
    waiting = asyncio.ensure_future(RestHandler.while_connected(request, work))  # type: ignore[arg-type]
    await begun.wait()
    request._gone.set()
    with pytest.raises(StreamClosedError):
        await waiting


async def test_a_request_that_is_given_up_when_its_work_has_failed() -> None:
    async def fail() -> None:
        raise StreamClosedError

    waiting = asyncio.ensure_future(RestHandler.while_connected(Request(), fail()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_agent_that_breaks_off_while_its_stream_is_given_up() -> None:
    async def source() -> AsyncGenerator[Any]:
        await fails_when_cancelled(ConnectionResetError())
        yield None

    async def dead() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await anext(heard(source(), dead, silence=0.01))


async def test_a_checkpoint_on_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"no database" * 1000)
    for path in (tmp_path / "db.sqlite", tmp_path / "none" / "db.sqlite"):
        sqlite._checkpoint(str(path))  # in a thread that nobody waits for
