"""The executions in flight of one context: when they start, time out and end, and who has to say so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from llmsafespace_agent.server import messages
from llmsafespace_agent.server.executions import ENAMES, Execution
from llmsafespace_agent.server.messages import Parts

INTERRUPT_GRACE = 5.0
KILLED_BY = (
    INTERRUPT_GRACE + 1.5
)  # seconds after its time limit by which an execution's kernel is surely dead
_INTERRUPT_FIRST = 0.1  # the kernel has said that it begins, but must have reached the code itself
_INTERRUPT_AGAIN = 0.5


class Voice(Protocol):
    """What the tracker needs of its context."""

    def publish(self, channel: str, parts: Parts, execution: Execution | None = None) -> int:
        """Journal a message of the agent's own; returns its sequence number."""

    def signal_interrupt(self) -> None:
        """Interrupt the kernel."""

    def kill_kernel(self, message: str) -> None:
        """Kill the kernel; its end follows."""

    def must_end(self, execution: Execution, seconds: float | None) -> None:
        """In so many seconds the execution has ended, or the sandbox is ended from outside; None: no more."""


class Tracker:
    """Follows each execute_request from its arrival to its end, which is told exactly once."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._flying: dict[str, Execution] = {}

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def running(self) -> list[Execution]:
        """Those that the kernel works on now."""
        return [execution for execution in self._flying.values() if execution.status == "running"]

    def find(self, msg_id: str) -> Execution | None:
        """The execution in flight of this id."""
        return self._flying.get(msg_id)

    def add(self, execution: Execution) -> Execution:
        """Follow it; a plain client's second request of the same id shares the record of the first."""
        known = self._flying.get(execution.id)
        if known is not None:
            known.copies += 1
            return known
        self._flying[execution.id] = execution
        return execution

    # -- what the kernel says --------------------------------------------------------------------

    def sent(self, execution: Execution) -> None:
        """The kernel gets it now, and may begin with it before it says so."""
        execution.sent = True
        if self._first() is execution:
            self._limit(execution)

    def kernel_died(self) -> None:
        """The kernel's process is dead, though it has not been told yet: nothing of it can run too long."""
        for execution in self._flying.values():
            self._voice.must_end(execution, None)

    def busy(self, execution: Execution) -> None:
        """The kernel begins with it: time counts from here."""
        if execution.status != "queued":
            return
        execution.status = "running"
        execution.started_at = time.time()
        self._limit(execution)
        if execution.stop == "interrupted":  # asked for while it was queued
            execution.timer = asyncio.get_running_loop().call_later(
                _INTERRUPT_FIRST, self._interrupt_until_ended, execution, 6
            )
        elif execution.timeout is not None:
            execution.timer = asyncio.get_running_loop().call_later(
                execution.timeout, self._timed_out, execution
            )

    def replied(self, execution: Execution, parts: Parts) -> Parts:
        """The kernel's reply: returns it as it is told, rewritten only where the kernel does not know."""
        told = self._as_told(execution, parts)
        execution.replies += 1  # only now: the end of one that could not be read has still to be told
        return told

    def _as_told(self, execution: Execution, parts: Parts) -> Parts:
        content = messages.reply_content(parts[3])
        execution.execution_count = content.execution_count
        if execution.stop == "timeout":
            execution.end, execution.message = "timeout", timeout_text(execution)
            return messages.as_failure(parts, "timeout", ENAMES["timeout"], execution.message)
        if execution.stop == "interrupted" and content.ename == "KeyboardInterrupt":
            execution.end, execution.message = "interrupted", "The execution was interrupted"
            return messages.annotated(parts, "interrupted")
        execution.end = {"ok": "ok", "abort": "aborted", "aborted": "aborted"}.get(content.status, "error")
        return parts

    def idle(self, execution: Execution) -> None:
        """The kernel is done with it."""
        execution.idles += 1

    def settle(self, execution: Execution) -> None:
        """Call after each message about it has been journaled: ends it once reply and idle are there."""
        if execution.replies >= execution.copies and execution.idles >= execution.copies:
            self._finish(execution)

    # -- what the agent says ---------------------------------------------------------------------

    def interrupted(self, execution: Execution) -> None:
        """Somebody wants this one to stop; one that is still queued stops as it starts."""
        if execution.stop is None:
            execution.stop = "interrupted"
        if not execution.sent:
            self.fail(execution, "interrupted", "The execution was interrupted before it began")
        elif execution.status == "running":
            self._voice.signal_interrupt()

    def interrupted_all(self) -> None:
        """Somebody interrupts the kernel itself: what runs now stops."""
        for execution in self.running:
            if execution.stop is None:
                execution.stop = "interrupted"

    def kernel_gone(self, end: str, message: str, *, unsent: bool) -> None:
        """The kernel will say nothing more: end what it had, and with `unsent` also what it never got.

        What ran ends with `end`; what was queued never began, which is `kernel_died`, or the sandbox's end.
        """
        for execution in tuple(self._flying.values()):
            if not execution.sent and not unsent:
                continue
            if execution.status == "running" and execution.stop == "timeout":
                self.fail(execution, "timeout", timeout_text(execution))
            elif execution.status == "running" or end in ("expired", "aborted"):
                self.fail(execution, end, message)
            else:
                self.fail(execution, "kernel_died", f"{message} This execution had not begun.")

    def fail(self, execution: Execution, end: str, message: str) -> None:
        """End it in the agent's own words, saying only what the kernel has not said."""
        parent = execution.header
        if execution.replies < execution.copies:
            execution.end, execution.message = end, message
            content = messages.error_content(ENAMES[end], message)
            if not execution.silent:
                self._tell(execution, "iopub", messages.message("error", content, parent))
            reply = {"status": "error", "execution_count": execution.execution_count, **content}
            told = {"llmsafespace": {"end": end}}
            self._tell(execution, "shell", messages.message("execute_reply", reply, parent, told))
        if execution.idles < execution.copies:
            self._tell(execution, "iopub", messages.status("idle", parent))
        self._finish(execution)

    # -- inside ----------------------------------------------------------------------------------

    def _tell(self, execution: Execution, channel: str, parts: Parts) -> None:
        self._voice.publish(channel, parts, execution)

    def _finish(self, execution: Execution) -> None:
        if execution.ended:
            return
        execution.status = "ended"
        execution.completed_at = time.time()
        if execution.timer is not None:
            execution.timer.cancel()
            execution.timer = None
        if self._flying.get(execution.id) is execution:
            del self._flying[execution.id]
            self._voice.must_end(execution, None)
            following = self._first()
            if following is not None and following.status == "queued":
                self._limit(following)  # the kernel goes on with it at once
        callbacks: list[Callable[[], None]] = execution.on_end
        execution.on_end = []
        for callback in callbacks:
            callback()

    def _first(self) -> Execution | None:
        """The oldest that the kernel has: it works on it, or begins with it now."""
        return next((execution for execution in self._flying.values() if execution.sent), None)

    def _limit(self, execution: Execution) -> None:
        if execution.timeout is not None:
            self._voice.must_end(execution, execution.timeout + KILLED_BY)

    def _timed_out(self, execution: Execution) -> None:
        if execution.ended:
            return
        if not execution.replies:  # otherwise the kernel says that it is done, and has to become idle
            execution.stop = "timeout"
            self._voice.signal_interrupt()
        execution.timer = asyncio.get_running_loop().call_later(INTERRUPT_GRACE, self._overdue, execution)

    def _overdue(self, execution: Execution) -> None:
        if not execution.ended:
            execution.end, execution.message = "timeout", timeout_text(execution)  # whatever it replied
            self._voice.kill_kernel(
                "An execution ran over its time limit and did not react to the interrupt, "
                "so its kernel was killed; restart the context."
            )

    def _interrupt_until_ended(self, execution: Execution, attempts: int) -> None:
        """An interrupt that arrives before the code itself runs can be lost, so it is sent again."""
        if execution.ended:
            return
        if attempts == 0 or execution.replies:  # it is done, but must still become idle in time
            if execution.timeout is not None:  # whatever the code does with interrupts, its limit holds
                left = execution.started_at + execution.timeout - time.time()
                execution.timer = asyncio.get_running_loop().call_later(
                    min(max(0.0, left), execution.timeout), self._timed_out, execution
                )
            return
        self._voice.signal_interrupt()
        execution.timer = asyncio.get_running_loop().call_later(
            _INTERRUPT_AGAIN, self._interrupt_until_ended, execution, attempts - 1
        )


def timeout_text(execution: Execution) -> str:
    """Why it ended."""
    return f"The execution ran longer than its time limit of {execution.timeout:g} s and was stopped"
