"""The executions in flight of one context: when they start, time out and end, and who has to say so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llmsafespace_agent.server import messages
from llmsafespace_agent.server.executions import ENAMES, Execution
from llmsafespace_agent.server.messages import Parts

INTERRUPT_GRACE = 5.0
_AGAIN = (2.0, 1.5, 1.0, 0.5)  # seconds after each interrupt; then the kernel is killed
KILLED_BY = (
    INTERRUPT_GRACE + 1.5
)  # seconds after its time limit by which an execution's kernel is surely dead
_INTERRUPT_FIRST = 0.1  # the kernel has said that it begins, but must have reached the code itself
_INTERRUPT_AGAIN = 0.5
_INTERRUPT_TRIES = 10
_MANY = 1024


@dataclass(slots=True)
class _Late:
    execution: Execution
    silent: bool  # it had not begun when it ended: nothing of it is told
    begun: bool = False

    def __post_init__(self) -> None:
        self.begun = not self.silent


class Voice(Protocol):
    """What the tracker needs of its context."""

    def publish(self, channel: str, parts: Parts, execution: Execution | None = None) -> int:
        """Journal a message of the agent's own; returns its sequence number."""

    def signal_interrupt(self) -> None:
        """Interrupt the kernel."""

    def skip(self, execution: Execution) -> None:
        """The kernel need not begin with it."""

    def kill_kernel(self, message: str) -> None:
        """Kill the kernel; its end follows."""

    def must_end(self, execution: Execution, seconds: float | None) -> None:
        """In so many seconds the execution has ended, or the sandbox is ended from outside; None: no more."""


class Tracker:
    """Follows each execute_request from its arrival to its end, which is told exactly once."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._flying: dict[str, Execution] = {}
        self._late: dict[str, _Late] = {}  # ended, though the kernel may still begin or reply

    def __len__(self) -> int:
        return len(self._flying)

    @property
    def given(self) -> list[Execution]:
        """Those that the kernel has, and has not finished."""
        return [execution for execution in self._flying.values() if execution.sent]

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
        if execution.id in self._late:
            self._forget(execution.id)
        self._flying[execution.id] = execution
        return execution

    # -- what the kernel says --------------------------------------------------------------------

    def sent(self, execution: Execution) -> None:
        """The kernel gets it now: time counts from here, also while others run before it."""
        execution.sent = True
        if execution.timeout is not None:
            self._voice.must_end(execution, execution.timeout + KILLED_BY)
            self._call(execution, execution.timeout, self._timed_out, execution)

    def kernel_died(self) -> None:
        """The kernel's process is dead, though it has not been told yet: nothing of it can run too long."""
        for execution in self._flying.values():
            self._voice.must_end(execution, None)

    def busy(self, execution: Execution) -> None:
        """The kernel begins with it."""
        if execution.status == "queued":
            execution.status = "running"
            execution.started_at = time.time()

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
        """Somebody wants this one to stop. One that is still queued has ended, and never runs."""
        if execution.status == "queued":
            self.fail(execution, "interrupted", "The execution was interrupted before it began")
            return
        if execution.stop is None:
            execution.stop = "interrupted"
        self._voice.signal_interrupt()

    def interrupted_all(self) -> None:
        """Somebody interrupts the kernel itself: what runs now stops, and durable ones behind it end.

        Of what others have queued the kernel decides, as everywhere (`stop_on_error`).
        """
        for execution in tuple(self._flying.values()):
            if execution.status == "running":
                execution.stop = execution.stop or "interrupted"
            elif execution.durable:
                self.interrupted(execution)

    def dropped(self, execution: Execution) -> None:
        """The kernel has answered what it got after this one, and will say nothing more about it."""
        why = "The kernel dropped this request without a reply."
        if execution.end is not None:  # how it ended is known: only the idle was missing
            why = execution.message or why
        self.fail(execution, execution.end or "error", why)

    def late(self, msg_id: str, state: str, *, reply: bool = False) -> bool:
        """Whether a message is about one that has ended before the kernel was done with it; notes the state.

        Then nobody is told. One that had not begun is interrupted when it begins all the same.
        """
        late = self._late.get(msg_id)
        if late is None:
            return False
        if state == "busy" and not late.begun:
            late.begun = True
            self._voice.must_end(late.execution, KILLED_BY + _INTERRUPT_TRIES)
            self._call(late.execution, _INTERRUPT_FIRST, self._interrupt_late, msg_id, _INTERRUPT_TRIES)
        elif state == "idle":
            self._forget(msg_id)
        return late.silent or reply or state in ("busy", "idle")

    def kernel_gone(self, end: str, message: str, *, unsent: bool) -> None:
        """The kernel will say nothing more: end what it had, and with `unsent` also what it never got.

        What ran ends with `end`; what was queued never began, which is `kernel_died`, or the sandbox's end.
        """
        for msg_id in tuple(self._late):
            self._forget(msg_id)
        for execution in tuple(self._flying.values()):
            if not execution.sent and not unsent:
                continue
            if execution.status == "running" and execution.stop == "timeout":
                self.fail(execution, "timeout", timeout_text(execution), gone=True)
            elif execution.status == "running" or end in ("expired", "aborted"):
                self.fail(execution, end, message, gone=True)
            else:
                self.fail(execution, "kernel_died", f"{message} This execution had not begun.", gone=True)

    def fail(self, execution: Execution, end: str, message: str, *, gone: bool = False) -> None:
        """End it in the agent's own words, saying only what the kernel has not said.

        `gone`: it will not say anything more.
        """
        parent = execution.header
        if execution.replies < execution.copies:
            execution.end, execution.message = end, message
            content = messages.error_content(ENAMES[end], message)
            if not execution.silent:
                self._tell(execution, "iopub", messages.message("error", content, parent))
            reply = {"status": "error", "execution_count": execution.execution_count, **content}
            told = {"llmsafespace": {"end": end}}
            self._tell(execution, "shell", messages.message("execute_reply", reply, parent, told))
        unsaid = execution.replies < execution.copies or execution.idles < execution.copies
        if execution.sent and unsaid and not gone:
            self._late[execution.id] = _Late(execution, silent=execution.status == "queued")
            if execution.status == "queued":
                self._voice.skip(execution)
            if len(self._late) > _MANY:
                self._forget(next(iter(self._late)))
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
        callbacks: list[Callable[[], None]] = execution.on_end
        execution.on_end = []
        for callback in callbacks:
            callback()

    def _call(
        self, execution: Execution, seconds: float, what: Callable[..., None], *arguments: object
    ) -> None:
        if execution.timer is not None:
            execution.timer.cancel()
        execution.timer = asyncio.get_running_loop().call_later(seconds, what, *arguments)

    def _timed_out(self, execution: Execution) -> None:
        if execution.ended:
            return
        if execution.status == "queued":
            self.fail(execution, "timeout", timeout_text(execution))
            return
        if not execution.replies:  # otherwise the kernel says that it is done, and has to become idle
            execution.stop = "timeout"
            self._voice.signal_interrupt()
        self._call(execution, _AGAIN[0], self._insist, execution, 1)

    def _insist(self, execution: Execution, times: int) -> None:
        """Interrupt it again, sooner each time; a kernel that listens to none of these is killed."""
        if execution.ended:
            return
        if times == len(_AGAIN):
            execution.end, execution.message = "timeout", timeout_text(execution)  # whatever it replied
            self._voice.kill_kernel(
                "An execution ran over its time limit and did not react to interrupts, "
                "so its kernel was killed; restart the context."
            )
            return
        if not execution.replies:
            self._voice.signal_interrupt()
        self._call(execution, _AGAIN[times], self._insist, execution, times + 1)

    def _interrupt_late(self, msg_id: str, tries: int) -> None:
        """An interrupt that arrives before the code itself runs can be lost, so it is sent again."""
        late = self._late.get(msg_id)
        if late is None:
            return
        if not tries:
            self._voice.kill_kernel("An execution that had ended began all the same, and did not stop.")
            return
        self._voice.signal_interrupt()
        self._call(late.execution, _INTERRUPT_AGAIN, self._interrupt_late, msg_id, tries - 1)

    def _forget(self, msg_id: str) -> None:
        execution = self._late.pop(msg_id).execution
        self._voice.must_end(execution, None)
        if execution.timer is not None:
            execution.timer.cancel()


def timeout_text(execution: Execution) -> str:
    """Why it ended."""
    return f"The execution ran longer than its time limit of {execution.timeout:g} s and was stopped"
