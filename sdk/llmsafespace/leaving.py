"""Ends in the sandbox what nobody here listens to any more: its output was left, or its caller cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from llmsafespace.errors import NotFound, SandboxError
from llmsafespace.transport import Transport, segment

_TOLD_WITHIN = 2.0  # seconds that whoever leaves waits until the sandbox has been told
_CLOSED_WITHIN = 5.0  # seconds that the last holder of the connection waits for everything
_GRACE = (0.1, 0.3, 0.6, 1.0)  # seconds after an interrupt when to look whether the command has ended
_LOOKS = (0.1, 0.3, 1.0)  # seconds after which it is tried again, as the request may still be on its way
_REQUEST = 10.0  # seconds for one request


class Leaving:
    """Interrupts executions of one sandbox, and kills commands that an interrupt does not end."""

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = base
        self._tasks: set[asyncio.Task[object]] = set()

    async def code(self, execution_id: str) -> None:
        """End code that runs; returns when the sandbox has been told, or soon."""
        told = asyncio.Event()
        await self._start(self._interrupt(execution_id, told), told)

    async def command(self, command_id: str) -> None:
        """End a command that runs; returns when the sandbox has been told, or soon."""
        told = asyncio.Event()
        await self._start(self._end_command(command_id, told), told)

    async def wait(self) -> None:
        """Wait until what was left has ended, not for long."""
        for _ in range(4):  # what was dropped without a word is closed by the event loop, in some turns
            await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_CLOSED_WITHIN)

    async def _start(self, work: Coroutine[Any, Any, object], told: asyncio.Event) -> None:
        # A task of its own: whoever leaves may be cancelled, and must not wait for the whole of it.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: told.set())
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(told.wait(), _TOLD_WITHIN)

    async def _interrupt(self, execution_id: str, told: asyncio.Event) -> bool:
        """False when there is no such execution, or nobody who could be asked."""
        path = f"{self._base}/executions/{segment(execution_id)}/interrupt"
        for pause in (*_LOOKS, None):
            try:
                await self._transport.request("POST", path, repeatable=True, timeout=_REQUEST)
            except NotFound:
                if pause is not None:
                    await asyncio.sleep(pause)
                continue
            except SandboxError:
                return False
            told.set()
            return True
        return False

    async def _end_command(self, command_id: str, told: asyncio.Event) -> None:
        if not await self._interrupt(command_id, told):
            return
        with contextlib.suppress(SandboxError):
            for pause in _GRACE:
                await asyncio.sleep(pause)
                if not await self._runs(command_id):
                    return
            path = f"{self._base}/commands/{segment(command_id)}"
            await self._transport.request("DELETE", path, timeout=_REQUEST)

    async def _runs(self, command_id: str) -> bool:
        # The list, as a command that has ended is described with all its output.
        path = f"{self._base}/commands"
        known = await self._transport.request("GET", path, params={"limit": 1000}, timeout=_REQUEST)
        return any(one["running"] for one in known["items"] if one["id"] == command_id)
