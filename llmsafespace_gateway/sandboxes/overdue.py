"""A second clock for executions, on the gateway's side: whatever an agent does, who asked gets an answer.

The agent ends an execution that runs past its time limit. Code may slow the agent down, stop it or take it
over; then nobody would ever answer. So for each execution with a limit that was accepted here, this module
looks at it once more after limit and grace: has it ended, all is well; is it said to have begun late, it is
looked at again; otherwise the agent does not answer, or does not do what it has to, and the whole sandbox is
ended with the word `timeout`. Until then an execution costs a timer, and no message.

Where the backend has a clock of its own (see SandboxBackend.set_lifetime and the local keeper), that one is
first. This one does not survive the gateway process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from llmsafespace_agent.wire.requests import ById, CommandInfo, ExecutionInfo
from llmsafespace_gateway.errors import ApiError

log = logging.getLogger(__name__)

GRACE = 5.0 + 3.0  # seconds: what the agent takes to interrupt and to kill, and a margin
ANSWER = 2.0  # seconds that it has to say how an execution stands
_AT_LEAST = 1.0

Ask = Callable[[str, str, msgspec.Struct, float], Awaitable[Any]]
End = Callable[[str, str], Awaitable[bool]]


class Overdue:
    """Looks after executions. `ask(sandbox, method, params, timeout)` is a call to an agent.

    `end(sandbox, word)` ends a sandbox.
    """

    def __init__(self, ask: Ask, end: End) -> None:
        self._ask = ask
        self._end = end
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[None]] = {}

    def watch(self, sandbox_id: str, execution: str, limit: float, *, command: bool = False) -> None:
        """See to it that an execution which was accepted just now ends, `limit` seconds after it began."""
        key = (sandbox_id, execution)
        if key not in self._timers and key not in self._looking:
            self._later(key, limit, limit + GRACE, command)

    def ended(self, sandbox_id: str, execution: str) -> None:
        """It has ended: nothing is to be looked at any more."""
        timer = self._timers.pop((sandbox_id, execution), None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Look at nothing any more."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._looking.values():
            task.cancel()
        self._timers.clear()

    def _later(self, key: tuple[str, str], limit: float, seconds: float, command: bool) -> None:
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self._due, key, limit, command)

    def _due(self, key: tuple[str, str], limit: float, command: bool) -> None:
        self._timers.pop(key, None)
        task = asyncio.create_task(self._look(key, limit, command), name=f"look at {key[1]}")
        self._looking[key] = task
        task.add_done_callback(lambda _: self._looking.pop(key, None))

    async def _look(self, key: tuple[str, str], limit: float, command: bool) -> None:
        sandbox_id, execution = key
        left = await self._left(key, limit, command)
        if left is None:  # perhaps only the way to it was broken
            await asyncio.sleep(_AT_LEAST)
            left = await self._left(key, limit, command)
        if left == 0.0:
            return
        if left is not None and left > 0.0:
            self._later(key, limit, left, command)
            return
        log.warning(
            "sandbox %s is ended: its agent did not end execution %s, whose time limit of %g s is over",
            *(sandbox_id, execution, limit),
        )
        try:
            await self._end(sandbox_id, "timeout")
        except Exception:
            log.exception("sandbox %s could not be ended", sandbox_id)

    async def _left(self, key: tuple[str, str], limit: float, command: bool) -> float | None:
        """As `still`; None when the agent does not answer."""
        method = "commands.get" if command else "executions.get"
        try:
            async with asyncio.timeout(ANSWER):  # to reach it included
                info = await self._ask(key[0], method, ById(id=key[1]), ANSWER)
        except TimeoutError:
            return None
        except ApiError as error:
            # otherwise the sandbox has ended, or knows nothing of it (any more)
            return None if error.code == "service_unavailable" else 0.0
        return still(info, limit, time.time())


def still(info: ExecutionInfo | CommandInfo, limit: float, now: float) -> float:
    """In how many seconds to look again: 0 when it has ended, below 0 when it should have.

    What the agent says is believed as far as it can be: a beginning in the future is none.
    """
    if (info.status == "ended") if isinstance(info, ExecutionInfo) else not info.running:
        return 0.0
    if isinstance(info, ExecutionInfo) and info.status == "queued":
        return limit + GRACE
    left = min(info.started_at, now) + limit + GRACE - now
    return max(left, _AT_LEAST) if left > 0.0 else -1.0
