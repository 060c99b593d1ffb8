"""The process that Jupyter applications take for a local kernel: ZeroMQ on one side, a sandbox on the other.

Started by the provisioner, in a process of its own so that a busy application cannot stall it. One JSON line
on standard input says what to be; further lines are requests `{"id", "op"}`, answered on standard output as
`{"id", "error"?}` beside events `{"event": "ready" | "dead" | "stopped" | "ended"}`. When its standard input
ends, so does the application, and the sandbox is terminated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmsafespace import messages
from llmsafespace.channel import Channel, check_size
from llmsafespace.decoding import BadMessage, decode_object
from llmsafespace.errors import InvalidRequest, SandboxEnded, SandboxError
from llmsafespace.jupyter.deaths import Deaths
from llmsafespace.jupyter.sockets import KernelSockets
from llmsafespace.messages import Message
from llmsafespace.sandbox import AsyncSandbox

log = logging.getLogger("llmsafespace.bridge")
# Requests that only ask: sent again after a lost connection. The sandbox runs an execute_request once.
_REPEATABLE = frozenset(
    {
        "execute_request",
        "kernel_info_request",
        "complete_request",
        "inspect_request",
        "is_complete_request",
        "history_request",
        "comm_info_request",
    }
)

_AHEAD = 500  # messages that may wait for the local sockets


class Bridge:
    """One kernel's bridge: a sandbox, its channel, and the local sockets."""

    def __init__(self, request: dict[str, Any], tell: Any) -> None:
        self._request = request
        self._tell = tell
        self._sandbox: AsyncSandbox | None = None
        self._channel: Channel | None = None
        self._sockets: KernelSockets | None = None
        self._unanswered: dict[str, bytes] = {}
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None
        self._deaths = Deaths()
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        """Create the sandbox (or connect to the one named) and bind the sockets. Raises SandboxError."""
        self._sockets = KernelSockets(self._request["connection"], self._from_client)
        self._sender = asyncio.ensure_future(self._send_all())
        await self._open_sandbox(self._request.get("sandbox_id"))

    async def _open_sandbox(self, sandbox_id: str | None = None) -> None:
        where = {"api_url": self._request["url"], "api_key": self._request["key"]}
        if sandbox_id is not None:
            self._sandbox = await AsyncSandbox.connect(sandbox_id, **where)
        else:
            sandbox = dict(self._request["sandbox"])
            files = {path: Path(local) for path, local in sandbox.pop("files", {}).items()}
            # Cells of Jupyter clients have no time limit of their own.
            self._sandbox = await AsyncSandbox(**sandbox, files=files, timeout=None, **where)
        kernel_id = await self._sandbox.contexts.default_id()
        self._channel = Channel(
            self._sandbox.transport, kernel_id, messages.new_id(), self, None if sandbox_id else 0
        )
        self._channel.start()

    async def close(self, *, terminate: bool) -> None:
        """Let go of everything; with `terminate` the sandbox ends."""
        if self._channel is not None:
            await self._channel.close()
        if self._sandbox is not None:
            with contextlib.suppress(SandboxError):
                await (self._sandbox.terminate() if terminate else self._sandbox.close())
        if self._sender is not None:
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._outgoing.join(), 2)
            self._sender.cancel()
        if self._sockets is not None:
            await self._sockets.close()

    # -- from local clients

    async def _from_client(self, channel: str, parts: list[bytes]) -> None:
        header = messages.decode_header(parts[0])
        if header.msg_type == "shutdown_request":
            await self._shutdown(channel, parts)
            return
        if self._deaths.dead:
            return  # as nothing would be read by a process that is dead
        frame = messages.pack(channel, parts)
        try:
            check_size(frame)
        except InvalidRequest as error:
            self._refuse(frame, error)
            return
        if header.msg_type in _REPEATABLE:
            self._unanswered[header.msg_id] = frame
            if self._channel is not None and not await self._channel.send(frame):
                self._channel.start()
        elif self._channel is not None:
            self._channel.start()
            await self._channel.send_once(frame)

    async def _shutdown(self, channel: str, parts: list[bytes]) -> None:
        """Stop being a kernel. A restart keeps the sandbox: the application starts us again."""
        restart = bool(decode_object(parts[3]).get("restart"))
        content = {"status": "ok", "restart": restart}
        if self._sockets is not None:
            for where in (channel, "iopub"):
                await self._sockets.say(where, "shutdown_reply", content, parts[0])
        self._tell({"event": "stopped", "restart": restart})
        if not restart:
            self.stopped.set()

    # -- from the kernel (the channel's listener)

    def on_message(self, message: Message) -> None:
        """Pass a message on to the local clients."""
        channel = self._channel
        if channel is not None and message.seq and message.seq <= (channel.cursor or 0):
            return  # came before; it answers a request that was sent again
        if message.channel in ("shell", "control"):
            with contextlib.suppress(BadMessage):
                self._unanswered.pop(message.parent().msg_id, None)
        was_dead = self._deaths.dead
        for each in self._deaths.passed(message):
            self._outgoing.put_nowait(each)
        if self._deaths.dead and not was_dead:
            self._die("dead")

    def _die(self, event: str, **details: str) -> None:
        """Look dead to the application and its clients."""
        self._deaths.dead = True
        self._unanswered.clear()
        if self._sockets is not None:
            self._sockets.beating.clear()
        self._tell({"event": event, **details})

    def on_gap(self, missed: int, resume: int) -> None:
        """Tell of lost messages where a notebook shows it."""
        text = f"[{missed} messages were lost here: the sandbox's output quota was exceeded]\n"
        header = json.dumps(messages.header("stream", messages.new_id())).encode()
        content = json.dumps({"name": "stderr", "text": text}).encode()
        self._outgoing.put_nowait(Message("iopub", [header, b"{}", b"{}", content]))

    def on_refused(self, execution: str, error: SandboxError) -> None:
        """Answer a request that the sandbox does not carry out."""
        frame = self._unanswered.pop(execution, None)
        if frame is None:
            log.warning("the sandbox refused a message: %s", error)
        else:
            self._refuse(frame, error)

    def _refuse(self, frame: bytes, error: SandboxError) -> None:
        """Answer a message that is not carried out as a kernel does: an error, the reply, then idle."""
        refused = messages.unpack(frame)
        parent, kind = bytes(refused.parts[0]), refused.header().msg_type
        log.warning("%s was refused: %s", kind, error)
        content = {"status": "error", "ename": error.code, "evalue": error.message, "traceback": []}
        said: list[tuple[str, str, dict[str, Any]]] = [("iopub", "error", content)]
        if kind.endswith("_request"):
            said.append((refused.channel, f"{kind.removesuffix('_request')}_reply", content))
        said.append(("iopub", "status", {"execution_state": "idle"}))
        for channel, kind, document in said:
            header = json.dumps(messages.header(kind, messages.new_id())).encode()
            parts = [header, parent, b"{}", json.dumps(document).encode()]
            self._outgoing.put_nowait(Message(channel, parts))

    def on_lost(self, error: SandboxError) -> None:
        """The sandbox is gone, or we may not speak to it any more."""
        log.error("the sandbox is lost: %s", error)
        self._die("ended", error=error.message)

    def unanswered(self) -> Iterable[bytes]:
        """Requests that only ask, or run once, and have no reply yet."""
        return list(self._unanswered.values())

    @property
    def wanted(self) -> bool:
        """A kernel's connection is always wanted."""
        return not self.stopped.is_set()

    async def ready_for_more(self) -> None:
        """Read on when the local sockets have taken what was read."""
        if self._outgoing.qsize() > _AHEAD:
            await self._outgoing.join()

    async def _send_all(self) -> None:
        while True:
            message = await self._outgoing.get()
            try:
                if self._sockets is not None:
                    await self._sockets.send(message)
            except BadMessage as error:
                log.warning("a message of the kernel was dropped: %s", error)
            finally:
                self._outgoing.task_done()

    # -- from the provisioner

    async def interrupt(self) -> None:
        """Interrupt the kernel; variables stay."""
        if self._sandbox is not None:
            await self._sandbox.interrupt()

    async def restart(self) -> None:
        """A fresh kernel in the same sandbox; a fresh sandbox where the old one is gone."""
        if self._sandbox is None or self._channel is None:
            raise SandboxError("there is no sandbox to restart")
        self._unanswered.clear()
        self._deaths.revive()
        try:
            await self._sandbox.contexts.restart()
            self._channel.start()
        except SandboxEnded:
            await self._channel.close()
            await self._sandbox.close()
            await self._open_sandbox()
        if self._sockets is not None:
            self._sockets.beating.set()

    async def terminate(self) -> None:
        """End the sandbox and this process."""
        self.stopped.set()

    @property
    def sandbox_id(self) -> str | None:
        """The sandbox that serves."""
        return self._sandbox.id if self._sandbox is not None else None


async def serve() -> int:
    """Be a bridge until told to stop, or until the application is gone; the exit status."""
    lines = await _standard_input()

    def tell(document: dict[str, Any]) -> None:
        print(json.dumps(document), flush=True)

    first = await lines.readline()
    if not first:
        return 2
    bridge = Bridge(json.loads(first), tell)
    keep = False
    try:
        await bridge.start()
        tell({"event": "ready", "sandbox_id": bridge.sandbox_id})
        requests = asyncio.ensure_future(_requests(bridge, lines, tell))
        stopped = asyncio.ensure_future(bridge.stopped.wait())
        orphaned = asyncio.ensure_future(_orphaned())
        await asyncio.wait((requests, stopped, orphaned), return_when=asyncio.FIRST_COMPLETED)
        keep = requests.done() and requests.result()
        for task in (requests, stopped, orphaned):
            task.cancel()
    except (SandboxError, OSError) as error:
        tell({"event": "failed", "error": str(error)})
        return 1
    finally:
        await bridge.close(terminate=not keep)
    return 0


async def _orphaned() -> None:
    """Returns when the application is gone: a process that it forked may hold our standard input open."""
    application = os.getppid()
    while os.getppid() == application:  # noqa: ASYNC110  (nothing tells of it)
        await asyncio.sleep(1.0)


async def _requests(bridge: Bridge, lines: asyncio.StreamReader, tell: Any) -> bool:
    """Serve the provisioner's requests until its end; True when the sandbox is to live on (`leave`)."""
    operations = {"interrupt": bridge.interrupt, "restart": bridge.restart, "terminate": bridge.terminate}
    while line := await lines.readline():
        request = json.loads(line)
        answer: dict[str, Any] = {"id": request["id"]}
        if request["op"] == "leave":
            tell(answer)
            return True
        try:
            await operations[request["op"]]()
        except SandboxError as error:
            answer["error"] = error.message
        answer["sandbox_id"] = bridge.sandbox_id
        tell(answer)
    return False


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def main() -> int:
    """Entry point of `python -m llmsafespace.jupyter.bridge`."""
    if sys.stdin.isatty() or len(sys.argv) > 1:
        print(
            "This kernel needs the `llmsafespace` kernel provisioner, which this application did not use "
            "(it needs jupyter_client 7 or newer).",
            file=sys.stderr,
        )
        return 2
    logging.basicConfig(format="[llmsafespace] %(levelname)s %(message)s", level=logging.WARNING)
    return asyncio.run(serve())


if __name__ == "__main__":
    raise SystemExit(main())
