"""One running kernel as the agent sees it: its process and its four channels."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.kernels.channels import Channels
from llmsafespace_protocol.kernel_messages import BadKernelMessage, header_of

Parts = list[bytes]
OnMessage = Callable[[str, Parts], None]
OnExit = Callable[[int], None]

_LAST_WORDS = 1.0  # seconds that the output of a dead kernel may take to arrive


class KernelProcess:
    """A kernel that is ours alone: taken from `Kernels.take`, never shared.

    `on_message(channel, parts)` is called on the loop for each message from the kernel; channel is shell,
    control, stdin or iopub, parts are header, parent_header, metadata, content, then buffers. Messages that
    come before it is set are kept for it.
    `on_exit(returncode)` is called once, after the last message of a dead kernel; also when it is set late.
    `start_kind` tells how the kernel came to be: parked, fork or exec.
    """

    def __init__(
        self, inside: Inside, language: str, folder: Path, *, interrupt_mode: str = "signal"
    ) -> None:
        self._inside = inside
        self.language = language
        self.pid = 0
        self.start_kind = "exec"
        self.ours = False  # a kernel of our launcher
        self.returncode: int | None = None
        self.on_death: Callable[[], None] = lambda: None  # before its last messages; `on_exit` is after them
        self.folder = folder  # of its sockets, as the agent reaches it
        self._interrupt_mode = interrupt_mode
        self._channels: Channels | None = None
        self._on_message: OnMessage | None = None
        self._on_exit: OnExit | None = None
        self._kept: list[tuple[str, Parts]] = []
        self._gone = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs (as far as the reaper has seen)."""
        return self.pid != 0 and self.returncode is None

    @property
    def on_message(self) -> OnMessage | None:
        """Who gets the kernel's messages."""
        return self._on_message

    @on_message.setter
    def on_message(self, callback: OnMessage | None) -> None:
        self._on_message = callback
        if callback is not None:
            kept, self._kept = self._kept, []
            for channel, parts in kept:
                callback(channel, parts)

    @property
    def on_exit(self) -> OnExit | None:
        """Who is told of the kernel's end."""
        return self._on_exit

    @on_exit.setter
    def on_exit(self, callback: OnExit | None) -> None:
        self._on_exit = callback
        if callback is not None and self._gone.is_set() and self.returncode is not None:
            asyncio.get_running_loop().call_soon(callback, self.returncode)

    def attach(self, channels: Channels) -> None:
        """Give the kernel its channels (the factory does)."""
        self._channels = channels

    def deliver(self, channel: str, parts: Parts) -> None:
        """A message from the kernel (the channels call it)."""
        if self._on_message is None:
            self._kept.append((channel, parts))
        else:
            self._on_message(channel, parts)

    def died(self, returncode: int) -> None:
        """The reaper has seen the process end."""
        self.returncode = returncode
        self._signal_group(signal.SIGKILL)  # what it started goes with it
        self.on_death()
        self._ending = asyncio.get_running_loop().create_task(self._end(returncode))

    async def _end(self, returncode: int) -> None:
        if self._channels is not None:
            await self._channels.drained(_LAST_WORDS)
            self._channels.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._gone.set()
        if self._on_exit is not None:
            self._on_exit(returncode)

    def send(self, channel: str, parts: Sequence[bytes | memoryview]) -> None:
        """Send to shell, control or stdin (KeyError otherwise); never blocks.

        What is sent to a dead kernel goes nowhere.
        """
        if self._channels is not None:
            self._channels.send(channel, parts)

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group, or an interrupt_request where the kernelspec asks for it."""
        if self._interrupt_mode == "message":
            self.send("control", request("interrupt_request", {}))
        elif self.alive:
            self._signal_group(signal.SIGINT)

    def probe(self) -> str:
        """Send what the kernel answers, on shell and iopub, after all that it got before; returns its id.

        Ours know a message for it, which changes nothing. Others are asked who they are.
        """
        msg_type = "llmsafespace_probe_request" if self.ours else "kernel_info_request"
        parts = request(msg_type, {})
        self.send("shell", parts)
        return header_of(parts[0]).msg_id

    def skip(self, msg_id: str) -> None:
        """Ask a kernel of ours not to serve a request that waits in it."""
        if self.ours:
            self.send("control", request("llmsafespace_skip", {"msg_id": msg_id}))

    def kill(self) -> None:
        """SIGKILL to the kernel's process group; `on_exit` follows."""
        if self.alive:
            self._signal_group(signal.SIGKILL)

    async def shutdown(self, grace: float = 2.0) -> int:
        """Ask to end (shutdown_request), kill after `grace` seconds; returns the returncode at the end."""
        if self.alive and grace > 0:
            self.send("control", request("shutdown_request", {"restart": False}))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace)
        self.kill()
        await self._gone.wait()
        return self.returncode if self.returncode is not None else -signal.SIGKILL

    async def gone(self) -> None:
        """Wait until the kernel is dead and its last message delivered."""
        await self._gone.wait()

    def abandon(self) -> None:
        """End a kernel that did not come to be; quietly also when it never had a process."""
        self.kill()
        if self.pid == 0:
            if self._channels is not None:
                self._channels.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def forget_messages(self) -> None:
        """What was said before the kernel is taken concerns nobody."""
        self._kept.clear()

    def _signal_group(self, number: signal.Signals) -> None:
        self._inside.signal_group(self.pid, number)

    async def first_exchange(self, msg_type: str, content: dict[str, object]) -> None:
        """Send a request and wait for its reply and its idle; nothing of this is seen by `on_message`.

        It proves that the kernel works and that iopub is subscribed, and it warms the kernel up.
        Repeated every second until both have come, as a kernel that is not ours may bind late.
        """
        session = uuid.uuid4().hex
        seen: set[str] = set()
        done = asyncio.Event()

        def note(channel: str, parts: Parts) -> None:
            if not _is_of_session(parts[1], session):
                return
            if channel == "shell" or b'"idle"' in parts[3]:
                seen.add(channel)
            if seen >= {"shell", "iopub"}:
                done.set()

        self._on_message = note
        try:
            while not done.is_set():
                self.send("shell", request(msg_type, content, session))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(done.wait(), 1.0)
        finally:
            self._on_message = None


def _is_of_session(parent: bytes, session: str) -> bool:
    try:
        return header_of(parent).session == session
    except BadKernelMessage:
        return False


def request(msg_type: str, content: dict[str, object], session: str | None = None) -> Parts:
    """The parts of a request of the agent's own (Jupyter messaging protocol 5.4)."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "username": "agent",
        "session": session or uuid.uuid4().hex,
        "date": "1970-01-01T00:00:00.000000Z",
        "version": "5.4",
    }
    return [msgspec.json.encode(header), b"{}", b"{}", msgspec.json.encode(content)]
