"""A second clock for executions, on the gateway's side: whatever an agent does, who asked gets an answer.

The agent ends an execution that runs past its time limit. Code may slow the agent down, stop it or take it
over; then nobody would ever answer. So for each execution with a limit that was accepted here, this module
asks the agent about it once after limit and grace. When it has ended, all is well. When the agent says that
it began late, it is asked again later. When the agent says that it still runs, the agent does not do its
work, and the whole sandbox is ended with the word `timeout`. One question without an answer is no reason to
destroy a sandbox, since the network may be down for a moment: the agent is asked again after each of PAUSES,
and its sandbox is ended only when it has answered none of these questions. An execution whose end is seen in
time costs a timer, and no message.

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

from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.requests import ById, CommandInfo, ExecutionInfo

log = logging.getLogger(__name__)

GRACE = 5.0 + 3.0  # seconds: what the agent takes to interrupt and to kill, and a margin
ANSWER = 2.0  # seconds that it has to say how an execution stands
PAUSES = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)  # seconds after each question without an answer; 31 to 45 s in all
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
        # By sandbox and execution: the timer, then the task that asks.
        self._watched: dict[str, dict[str, asyncio.TimerHandle | asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def watch(self, sandbox_id: str, execution: str, limit: float, *, command: bool = False) -> None:
        """See to it that an execution which was accepted just now ends, `limit` seconds after it began."""
        if execution not in self._watched.get(sandbox_id, {}):
            self._later(sandbox_id, execution, limit, limit + GRACE, command)

    def ended(self, sandbox_id: str, execution: str) -> None:
        """It has ended: its agent is asked nothing about it any more."""
        watched = self._watched.get(sandbox_id, {}).get(execution)
        if watched is not None:
            watched.cancel()
            self._drop(sandbox_id, execution)

    def forget(self, sandbox_id: str) -> None:
        """A sandbox has ended, and all its executions with it."""
        for watched in self._watched.pop(sandbox_id, {}).values():
            watched.cancel()

    def close(self) -> None:
        """Watch nothing any more."""
        for sandbox_id in list(self._watched):
            self.forget(sandbox_id)
        for task in self._ending:
            task.cancel()

    def _later(self, sandbox_id: str, execution: str, limit: float, seconds: float, command: bool) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, self._due, sandbox_id, execution, limit, command)
        self._watched.setdefault(sandbox_id, {})[execution] = timer

    def _drop(self, sandbox_id: str, execution: str) -> None:
        executions = self._watched.get(sandbox_id, {})
        executions.pop(execution, None)
        if not executions:
            self._watched.pop(sandbox_id, None)

    def _due(self, sandbox_id: str, execution: str, limit: float, command: bool) -> None:
        look = self._look(sandbox_id, execution, limit, command)
        self._watched[sandbox_id][execution] = asyncio.create_task(look, name=f"look at {execution}")

    async def _look(self, sandbox_id: str, execution: str, limit: float, command: bool) -> None:
        left = await self._asked(sandbox_id, execution, limit, command)
        if left is not None and left > 0.0:
            self._later(sandbox_id, execution, limit, left, command)
            return
        self._drop(sandbox_id, execution)
        if left == 0.0:
            return
        log.warning(
            "sandbox %s is ended: the time limit of %g s of execution %s is over, and its agent %s",
            *(sandbox_id, limit, execution, "does not answer" if left is None else "does not end it"),
        )
        # A task that is not in _watched: ending a sandbox calls `forget`, which must not cancel it.
        ending = asyncio.create_task(self._end_sandbox(sandbox_id), name=f"end {sandbox_id}")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end_sandbox(self, sandbox_id: str) -> None:
        try:
            await self._end(sandbox_id, "timeout")
        except Exception:
            log.exception("sandbox %s could not be ended", sandbox_id)

    async def _asked(self, sandbox_id: str, execution: str, limit: float, command: bool) -> float | None:
        """As `still`; None when the agent answers none of our questions."""
        left = await self._left(sandbox_id, execution, limit, command)
        for pause in PAUSES:
            if left is not None:
                break
            await asyncio.sleep(pause)
            left = await self._left(sandbox_id, execution, limit, command)
        return left

    async def _left(self, sandbox_id: str, execution: str, limit: float, command: bool) -> float | None:
        """As `still`; None when the agent does not answer."""
        method = "commands.get" if command else "executions.get"
        try:
            async with asyncio.timeout(ANSWER):  # to reach it included
                info = await self._ask(sandbox_id, method, ById(id=execution), ANSWER)
        except TimeoutError:
            return None
        except ApiError as error:
            # otherwise the sandbox has ended, or knows nothing of it (any more)
            return None if error.code == "service_unavailable" else 0.0
        except Exception:
            log.exception("sandbox %s cannot be asked about execution %s", sandbox_id, execution)
            return None
        return still(info, limit, time.time())


def still(info: ExecutionInfo | CommandInfo, limit: float, now: float) -> float:
    """In how many seconds to look again: 0 when it has ended, below 0 when it should have.

    What the agent says is believed as far as it can be: a start time in the future is ignored.
    """
    if (info.status == "ended") if isinstance(info, ExecutionInfo) else not info.running:
        return 0.0
    if isinstance(info, ExecutionInfo) and info.status == "queued":
        return limit + GRACE
    left = min(info.started_at, now) + limit + GRACE - now
    return max(left, _AT_LEAST) if left > 0.0 else -1.0
