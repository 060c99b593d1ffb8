"""Finds the executions that a kernel has dropped: those that it will never reply to.

A kernel takes requests of the shell channel one after the other, and each of its channels keeps the order.
So a second after something was sent, and while something is unanswered, the kernel gets a probe behind all
of it. When the probe is answered on shell and on iopub, whatever was sent before it and has no reply by then
has been dropped, and whatever has a reply and no idle gets none. A kernel that works on a cell does not
answer, however long that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from llmsafespace_agent.kernels.process import KernelProcess
from llmsafespace_agent.server.executions import Execution
from llmsafespace_agent.server.tracking import Tracker
from llmsafespace_protocol.kernel_messages import UNREADABLE

_EVERY = 1.0


class _Routing(msgspec.Struct):
    subshell_id: msgspec.Raw | None = None


class Drops:
    """Watches one context; `kernel` is its kernel now."""

    def __init__(self, tracker: Tracker, kernel: Callable[[], KernelProcess | None]) -> None:
        self._tracker = tracker
        self._kernel = kernel
        self._timer: asyncio.TimerHandle | None = None
        self._probe = ""
        self._channels: set[str] = set()
        self._before: list[Execution] = []
        self._asked: KernelProcess | None = None

    def sent(self) -> None:
        """Something was sent to the kernel."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_EVERY, self._look)

    def answered(self, parent: str, channel: str, msg_type: str, state: str) -> bool:
        """Whether a message is about the probe, and concerns nobody else."""
        if not self._probe or parent != self._probe:
            return False
        ours = channel == "shell" or msg_type in ("llmsafespace_probe", "status")
        if ours and (msg_type != "status" or state == "idle"):
            self._channels.add(channel)
        if self._channels >= {"shell", "iopub"}:
            self._judge()
        return ours

    def _look(self) -> None:
        self._timer = None
        given, kernel = self._tracker.given, self._kernel()
        if not given or kernel is None or not kernel.alive:
            return
        if not self._probe or self._asked is not kernel:
            self._asked, self._before, self._channels = kernel, given, set()
            self._probe = kernel.probe()
        self.sent()

    def _judge(self) -> None:
        before, kernel, self._before, self._probe = self._before, self._asked, [], ""
        for execution in before:
            if execution.ended or kernel is not self._kernel() or _is_elsewhere(execution):
                continue
            known = kernel is not None and (kernel.ours or execution.idles or execution.status == "queued")
            if known and (execution.replies < execution.copies or execution.idles < execution.copies):
                self._tracker.dropped(execution)


def _is_elsewhere(execution: Execution) -> bool:
    """Whether a subshell runs it, which keeps an order of its own."""
    try:
        routing = msgspec.json.decode(execution.header, type=_Routing)
    except UNREADABLE:
        return True
    return routing.subshell_id is not None and bytes(routing.subshell_id) != b"null"
