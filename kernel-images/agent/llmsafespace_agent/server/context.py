"""One context: a kernel, its journal, the cursors of its sessions, and what happens when the kernel dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from llmsafespace_agent.kernels.factory import Kernels, KernelStartError
from llmsafespace_agent.kernels.process import KernelProcess
from llmsafespace_agent.server import cleaning, messages
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.drops import Drops
from llmsafespace_agent.server.errors import AgentError, conflict
from llmsafespace_agent.server.executions import Execution, Executions
from llmsafespace_agent.server.gate import Gate
from llmsafespace_agent.server.journal import Journal
from llmsafespace_agent.server.messages import Parts
from llmsafespace_agent.server.principals import Requests, session_key
from llmsafespace_agent.server.tracking import Tracker
from llmsafespace_protocol.frames import MAX_FRAME
from llmsafespace_protocol.kernel_messages import BadKernelMessage, Header, header_of, pack
from llmsafespace_protocol.requests import ContextInfo

_DEATH = 5.0  # seconds that a killed process may take to be gone
_SESSIONS = 1024
_IN_FLIGHT = 10_000
_PENDING_BYTES = 64 * 1024 * 1024
_LARGEST_PARTS = MAX_FRAME - 64 * 1024  # the layout of at most a thousand parts comes on top
_NOBODY = Header()
_NOBODYS = "nobody"  # in the journal: no session, since the keys of those have a NUL


class Watcher(Protocol):
    """Who wants to know about a context's life, and whom it tells of what runs with a time limit."""

    deadlines: Deadlines

    def activity(self) -> None:
        """Something was sent or received."""

    def ran_out_of_memory(self, pid: int, returncode: int) -> bool:
        """Whether this process was killed for lack of memory."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a context's kernels are started with, again after each restart."""

    id: str
    name: str
    language: str | None
    cwd: str
    env: dict[str, str]
    timezone: str | None = None


@dataclass(slots=True)
class _Pending:
    channel: str
    parts: Parts
    execution: Execution | None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(len(part) for part in self.parts)


class Context:
    """A kernel with everything around it that outlives it."""

    def __init__(
        self,
        setting: Setting,
        kernels: Kernels,
        journal: Journal,
        executions: Executions,
        gate: Gate,
        watcher: Watcher,
    ) -> None:
        self.setting = setting
        self.journal = journal
        self.state = "starting"
        self.connections = 0
        self.tracker = Tracker(self)
        self._drops = Drops(self.tracker, lambda: self._kernel)
        self.on_removed: list[Callable[[], None]] = []
        self._kernels = kernels
        self._executions = executions
        self._gate = gate
        self._watcher = watcher
        self._kernel: KernelProcess | None = None
        self._language = setting.language or kernels.languages[0]
        self._created = self._last = time.time()
        self._count = 0
        self._end: str | None = None
        self._doom: tuple[str, str] | None = None  # (end, message) of a kernel that the agent kills
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._requests = Requests()
        self._cursors: OrderedDict[str, int] = OrderedDict()
        self._aliases: OrderedDict[str, set[str]] = OrderedDict()
        self._changing = asyncio.Lock()
        gate.watch(self._flush)

    # -- what it is ------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Its id, a Jupyter kernel id."""
        return self.setting.id

    @property
    def language(self) -> str:
        """The language of its kernel."""
        return self._language

    @property
    def pid(self) -> int | None:
        """The kernel's process, while it lives."""
        return self._kernel.pid if self._kernel is not None and self._kernel.alive else None

    @property
    def busy(self) -> bool:
        """Whether an execution is queued or running."""
        return len(self.tracker) > 0

    def info(self) -> ContextInfo:
        """The public account of it."""
        state = "busy" if self.state == "idle" and self.tracker.running else self.state
        return ContextInfo(
            id=self.id,
            name=self.setting.name,
            language=self._language,
            state=state,
            cwd=self.setting.cwd,
            created_at=self._created,
            last_activity=self._last,
            connections=self.connections,
            executions=self._count,
            head=self.journal.head,
            end=self._end,
        )

    # -- its sessions ----------------------------------------------------------------------------

    def cursor(self, session: str) -> int | None:
        """Where this session goes on, None when it is not known."""
        return self._cursors.get(session)

    def advance(self, session: str, seq: int) -> None:
        """This session has everything up to `seq`."""
        seq = min(seq, self.journal.head)
        self._cursors[session] = max(seq, self._cursors.pop(session, 0))
        if len(self._cursors) > _SESSIONS:
            self._cursors.popitem(last=False)

    def aliases(self, session: str) -> set[str]:
        """The sessions that replies to this one may name: itself, and those its messages were sent as.

        A client may open its stream under one name and sign its messages with another.
        """
        known = self._aliases.get(session)
        if known is None:
            known = self._aliases[session] = {session}
            if len(self._aliases) > _SESSIONS:
                self._aliases.popitem(last=False)
        return known

    # -- its kernel ------------------------------------------------------------------------------

    async def settled(self) -> None:
        """Wait until no start or restart is under way."""
        async with self._changing:
            return

    async def start(self) -> None:
        """Take a kernel. Raises AgentError; the context is then dead."""
        async with self._changing:
            await self._take()

    async def restart(self) -> None:
        """Another kernel in the place of this one. Raises AgentError when none starts."""
        async with self._changing:
            self.state = "restarting"
            self.publish("iopub", messages.status("restarting"))
            old, self._kernel = self._kernel, None
            if old is not None:
                _mute(old)
                self.tracker.kernel_gone("kernel_died", "The kernel was restarted.", unsent=False)
                old.kill()
            await self._take()

    def interrupt(self) -> None:
        """Stop what runs; variables stay. Raises AgentError when the kernel is dead."""
        self._living()
        self.tracker.interrupted_all()
        self.signal_interrupt()

    def kill_for(self, end: str, message: str) -> None:
        """Kill the kernel; what it ran ends with `end`."""
        if self._kernel is not None and self._kernel.alive:
            self._doom = (end, message)
            self._kernel.kill()

    def ran_over_memory(self) -> None:
        """The kernel uses more than the sandbox has."""
        self.kill_for("oom", "The kernel used more memory than the sandbox has; restart the context.")

    async def close(self, end: str, message: str) -> None:
        """End everything: executions with `end`, then the kernel. The journal stays readable."""
        self._gate.unwatch(self._flush)
        async with self._changing:
            kernel, self._kernel = self._kernel, None
            if kernel is not None:
                _mute(kernel)
            self.tracker.kernel_gone(end, message, unsent=True)
            self._drop_pending()
            self._announce_death(end)
            if kernel is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(kernel.shutdown(grace=0.0), _DEATH)

    def removed(self) -> None:
        """Tell the streams that nothing more comes, and give the journal back."""
        for callback in tuple(self.on_removed):
            callback()
        self.journal.close()

    # -- to the kernel ---------------------------------------------------------------------------

    def request(self, channel: str, parts: Parts, head: Header, principal: str) -> None:
        """Pass on a message that is no execute_request.

        Raises AgentError when too much waits already, or its id is another principal's.
        """
        self._note_asker(head.msg_id, principal)
        self._touch()
        if channel == "control" and head.msg_type == "interrupt_request":
            self.tracker.interrupted_all()
        if self.state == "dead":
            why = "This context's kernel is dead; restart the context"
            self.refuse(channel, parts, head, principal, "KernelDied", why)
        elif channel == "shell" or self._kernel is None:
            self._send(_Pending(channel, parts, None))
        else:
            self._kernel.send(channel, parts)

    def execute(self, parts: Parts, execution: Execution) -> None:
        """Run an execute_request, or queue it until the kernel and the gate are ready."""
        if len(self.tracker) >= _IN_FLIGHT:
            raise AgentError("rate_limited", f"{_IN_FLIGHT} executions are waiting already; try again later")
        pending = _Pending("shell", parts, execution)
        self._check_room(pending)
        self._note_asker(execution.id, execution.principal)
        self._touch()
        self._count += 1
        self._executions.add(execution)
        pending.execution = execution = self.tracker.add(execution)
        if self.state == "dead":
            self.tracker.fail(
                execution, "kernel_died", "This context's kernel is dead; restart the context to go on"
            )
            return
        self._send(pending)

    def _send(self, pending: _Pending) -> None:
        if self._kernel is None or self._pending or (pending.execution is not None and not self._gate.open):
            self._check_room(pending)
            self._pending.append(pending)
            self._pending_bytes += pending.size
            return
        if pending.execution is not None:
            if pending.execution.ended:
                return
            self.tracker.sent(pending.execution)
            self._drops.sent()
        self._kernel.send(pending.channel, pending.parts)

    def _check_room(self, pending: _Pending) -> None:
        if self._pending_bytes + pending.size > _PENDING_BYTES:
            raise AgentError("rate_limited", "too much is waiting for this kernel; try again later")

    def _flush(self) -> None:
        if self._kernel is None or not self._gate.open:
            return
        waiting, self._pending, self._pending_bytes = self._pending, [], 0
        for pending in waiting:
            self._send(pending)

    def _drop_pending(self) -> None:
        self._pending.clear()
        self._pending_bytes = 0

    def refuse(self, channel: str, parts: Parts, head: Header, principal: str, name: str, why: str) -> None:
        """Answer a request that no kernel gets with an error reply and the idle that clients wait for."""
        kind = head.msg_type.removesuffix("_request")
        if kind == head.msg_type or channel not in ("shell", "control"):
            return
        content = messages.error_content(name, why)
        reply = messages.message(f"{kind}_reply", {"status": "error", **content}, bytes(parts[0]))
        self.journal.append(pack(channel, reply), session_key(principal, head.session), head.msg_id)
        idle = messages.status("idle", bytes(parts[0]))
        self.journal.append(pack("iopub", idle), "", head.msg_id)

    # -- from the kernel -------------------------------------------------------------------------

    def _received(self, channel: str, parts: Parts) -> None:
        """The hot path: one kernel message becomes one journal entry."""
        try:
            head = header_of(parts[0])
            parent = header_of(parts[1]) if len(parts[1]) > 2 else _NOBODY
        except BadKernelMessage:
            return  # code in the sandbox may write what it likes to its kernel's sockets
        if not cleaning.is_clean(parts):
            parts = cleaning.cleaned(parts)
        execution = self.tracker.find(parent.msg_id) if parent.msg_id else None
        if execution is None and self._is_nobodys(channel, head, parent, parts):
            return
        to = self._asker(parent)
        if channel == "iopub":
            to = ""
            if head.msg_type == "iopub_welcome":  # says something about the agent's own socket only
                return
            if head.msg_type == "status":
                state = messages.execution_state(parts[3])
                if state not in cleaning.STATES:  # the agent tells of deaths and restarts
                    return
                self._status(state, execution)
            elif head.msg_type == cleaning.TOO_LARGE:
                told = cleaning.too_large(parts[3])
                self._dropped(told.msg_type, told.size, parts[1], parent, execution)
                return
        elif execution is not None and head.msg_type == "execute_reply":
            parts = self.tracker.replied(execution, parts)
        elif execution is not None and head.msg_type == "input_request":
            self._answer_input(parts, execution)
        self._touch()
        size = sum(map(len, parts))
        if size > _LARGEST_PARTS or len(parts) > cleaning.MAX_PARTS:
            if channel == "iopub":
                self._dropped(head.msg_type, size, parts[1], parent, execution)
                return
            content = {"status": "error", **messages.error_content("MessageTooLarge", _too_large(size))}
            parts = [*parts[:3], msgspec.json.encode(content)]
        self._record(pack(channel, parts), to, parent.msg_id, execution)

    def _is_nobodys(self, channel: str, head: Header, parent: Header, parts: Parts) -> bool:
        """Whether it answers a probe of the agent's own, or one whose end has been told."""
        state = messages.execution_state(parts[3]) if head.msg_type == "status" else ""
        if self._drops.answered(parent.msg_id, channel, head.msg_type, state):
            return True
        return self.tracker.late(parent.msg_id, state, reply=head.msg_type == "execute_reply")

    def _record(self, body: bytes, to: str, about: str, execution: Execution | None) -> None:
        seq = self.journal.append(body, to, about)
        if execution is not None:
            execution.noted(seq)
            self.tracker.settle(execution)

    def _note_asker(self, msg_id: str, principal: str) -> None:
        self._executions.check_free(msg_id, principal)
        self._requests.note(msg_id, principal)

    def _asker(self, parent: Header) -> str:
        """The session that a message is for which answers `parent`: nobody's where that was not sent here."""
        principal = self._requests.principal(parent.msg_id)
        return session_key(principal, parent.session) if principal is not None else _NOBODYS

    def _dropped(
        self, what: str, size: int, parent: bytes, head: Header, execution: Execution | None
    ) -> None:
        """A message that nobody can pass on: an entry without a body counts it, an error output says so."""
        text = f"{what[:80]}: {_too_large(size)}"
        error = messages.message("error", messages.error_content("MessageTooLarge", text), parent)
        self._record(b"", "", head.msg_id, execution)
        self._record(pack("iopub", error), "", head.msg_id, execution)

    def _answer_input(self, parts: Parts, execution: Execution) -> None:
        if execution.stdin is not None and self._kernel is not None:
            line = execution.stdin.pop(0) if execution.stdin else messages.END_OF_INPUT
            self._kernel.send("stdin", messages.input_reply(line, parts[0], execution.session))

    def _status(self, state: str, execution: Execution | None) -> None:
        if state in ("busy", "idle"):
            self.state = state
        if execution is not None:
            if state == "busy":
                self.tracker.busy(execution)
            elif state == "idle":
                self.tracker.idle(execution)

    def _exited(self, kernel: KernelProcess, returncode: int) -> None:
        if kernel is not self._kernel:
            return
        end, message = self._doom or self._cause(kernel.pid, returncode)
        self._doom = None
        self._kernel = None
        self.tracker.kernel_gone(end, message, unsent=True)
        self._drop_pending()
        self._announce_death(end)

    def _cause(self, pid: int, returncode: int) -> tuple[str, str]:
        if self._watcher.ran_out_of_memory(pid, returncode):
            return "oom", "The kernel was killed because the sandbox ran out of memory; restart the context."
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return "kernel_died", f"The kernel died ({how}); restart the context."

    def _announce_death(self, end: str) -> None:
        self.state = "dead"
        self._end = end if end in ("oom", "expired") else "kernel_died"
        self.publish("iopub", messages.status("dead"))

    # -- what the tracker needs ------------------------------------------------------------------

    def publish(self, channel: str, parts: Parts, execution: Execution | None = None) -> int:
        """Journal a message of the agent's own; returns its sequence number."""
        to = execution.asker if execution is not None and channel != "iopub" else ""
        seq = self.journal.append(pack(channel, parts), to, execution.id if execution is not None else "")
        if execution is not None:
            execution.noted(seq)
        return seq

    def signal_interrupt(self) -> None:
        """Interrupt the kernel where there is one."""
        if self._kernel is not None:
            self._kernel.interrupt()

    def skip(self, execution: Execution) -> None:
        """Its end has been told: the kernel need not begin with it."""
        if self._kernel is not None:
            self._kernel.skip(execution.id)

    def kill_kernel(self, message: str) -> None:
        """Kill the kernel because it does not listen."""
        self.kill_for("kernel_died", message)

    def must_end(self, execution: Execution, seconds: float | None) -> None:
        """By when an execution has ended, for whoever watches over the agent."""
        if seconds is None:
            self._watcher.deadlines.clear(execution)
        else:
            self._watcher.deadlines.set(execution, seconds)

    # -- inside ----------------------------------------------------------------------------------

    async def _take(self) -> None:
        setting = self.setting
        try:
            kernel = await self._kernels.take(
                setting.language, env=setting.env, cwd=setting.cwd, timezone=setting.timezone
            )
        except (ValueError, KernelStartError) as error:
            self.tracker.kernel_gone("kernel_died", f"No kernel could be started: {error}.", unsent=True)
            self._drop_pending()
            self._announce_death("kernel_died")
            code = "invalid_request" if isinstance(error, ValueError) else "service_unavailable"
            raise AgentError(code, f"the kernel could not be started: {error}") from error
        self._language = kernel.language
        self._kernel = kernel
        self._doom = self._end = None
        self.state = "idle"
        kernel.on_message = self._received
        kernel.on_death = self.tracker.kernel_died
        kernel.on_exit = lambda returncode: self._exited(kernel, returncode)
        self._flush()

    def _living(self) -> None:
        if self.state == "dead":
            raise conflict("this context's kernel is dead; restart the context", id=self.id)

    def _touch(self) -> None:
        self._last = time.time()
        self._watcher.activity()


def _too_large(size: int) -> str:
    known = f" of {size} bytes" if size > 0 else ""
    return (
        f"a message{known} was not passed on, as it can have at most {_LARGEST_PARTS} bytes and "
        f"{cleaning.MAX_PARTS - 4} buffers; write large data to a file"
    )


def _mute(kernel: KernelProcess) -> None:
    """Nothing that this kernel still says concerns anybody."""
    kernel.on_message = lambda channel, parts: None
    kernel.on_death = lambda: None
    kernel.on_exit = lambda returncode: None
