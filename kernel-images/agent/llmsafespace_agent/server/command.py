"""One command: its process group, its output as a journal, its end."""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import signal
import time
from collections.abc import Callable

from llmsafespace_agent.inside.inside import NOWHERE, Inside, Streams
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.errors import AgentError, conflict, invalid
from llmsafespace_agent.server.journal import Journal
from llmsafespace_protocol.requests import CommandInfo

_CHUNK = 64 * 1024
_STDIN_WAITING = 16 * 1024 * 1024
_TERM_GRACE = 2.0
_KILLED_BY = _TERM_GRACE + 4.5  # seconds after its time limit by which it is surely dead
_LAST_CHUNKS = 64


class Command:
    """A process of its own session. `on_end` callbacks are called once, when `info().end` is known."""

    def __init__(
        self,
        inside: Inside,
        command_id: str,
        line: str,
        digest: bytes,
        journal: Journal,
        deadlines: Deadlines,
    ) -> None:
        self.id = command_id
        self._inside = inside
        self._deadlines = deadlines
        self.digest = digest
        self.journal = journal
        self.on_end: list[Callable[[], None]] = []
        self._line = line
        self._pid = 0
        self._started = time.time()
        self._completed: float | None = None
        self._exit_code: int | None = None
        self._end: str | None = None
        self._stop: str | None = None  # why the agent or the user stopped it
        self._outputs: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}
        self._stdin: int | None = None
        self._waiting = bytearray()
        self._eof = False
        self._timer: asyncio.TimerHandle | None = None
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._end is None

    @property
    def pid(self) -> int:
        """Its process, also the id of its group."""
        return self._pid

    def info(self) -> CommandInfo:
        """The public account of it."""
        return CommandInfo(
            id=self.id,
            command=self._line,
            pid=self._pid,
            running=self.running,
            started_at=self._started,
            completed_at=self._completed,
            exit_code=self._exit_code,
            end=self._end,
            head=self.journal.head,
        )

    async def start(
        self, argv: list[str], cwd: str, env: dict[str, str], *, stdin: bool, timeout: float | None
    ) -> None:
        """Start the process. Raises AgentError when it cannot be; `started` then raises the same."""
        try:
            await self._start(argv, cwd, env, stdin, timeout)
        except BaseException as error:
            self._end = "error"
            refused = error if isinstance(error, AgentError) else conflict("the command was not started")
            self._begun.set_exception(refused)
            self._begun.exception()  # seen: nobody need be waiting
            raise
        self._begun.set_result(None)
        if self._stop is not None:  # while it was starting
            self._inside.signal_tree(self._pid, signal.SIGKILL)

    @property
    def begun(self) -> bool:
        """Whether it has been started, or could not be."""
        return self._begun.done()

    async def started(self) -> None:
        """Wait until it has been started. Raises AgentError when that failed."""
        await asyncio.shield(self._begun)

    async def _start(
        self, argv: list[str], cwd: str, env: dict[str, str], stdin: bool, timeout: float | None
    ) -> None:
        if timeout is not None:
            self._deadlines.set(self, timeout + _KILLED_BY)
        made: list[int] = []  # reading and writing end of stdout, stderr, stdin
        try:
            for _ in range(3 if stdin else 2):
                made += os.pipe()
            streams = Streams(made[4] if stdin else NOWHERE, made[1], made[3])
            self._pid = await self._inside.spawn(argv, env, cwd, streams, dies_first=True)
        except BaseException as error:
            self._deadlines.clear(self)
            for handle in made:
                os.close(handle)
            if isinstance(error, (OSError, ValueError)):
                raise _cannot_run(argv[0], error) from error
            raise
        for handle in (made[1], made[3], *made[4:5]):
            os.close(handle)
        loop = asyncio.get_running_loop()
        for handle, name in ((made[0], "stdout"), (made[2], "stderr")):
            os.set_blocking(handle, False)
            self._outputs[handle] = (name, codecs.getincrementaldecoder("utf-8")("replace"))
            loop.add_reader(handle, self._readable, handle)
        if stdin:
            self._stdin = made[5]
            os.set_blocking(self._stdin, False)
        if timeout is not None:
            self._timer = loop.call_later(timeout, self.stop, "timeout")
        self._inside.watch(self._pid, self._exited)

    # -- what can be done to it ------------------------------------------------------------------

    def stop(self, end: str) -> None:
        """Ask it to end, kill it soon after; its end will be `end`."""
        if self.running:
            self._stop = self._stop or end
            self._inside.signal_tree(self._pid, signal.SIGTERM)
            self._timer = asyncio.get_running_loop().call_later(_TERM_GRACE, self.kill, end)

    def kill(self, end: str) -> None:
        """Kill it now; its end will be `end`."""
        if self.running:
            self._stop = self._stop or end
            self._inside.signal_tree(self._pid, signal.SIGKILL)

    def ran_over_memory(self) -> None:
        """It uses more than the sandbox has."""
        self.kill("oom")

    def signal(self, number: signal.Signals) -> None:
        """A signal from the user to the whole group."""
        if self.running:
            if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                self._stop = self._stop or "interrupted"
            self._inside.signal_tree(self._pid, number)

    def write(self, data: bytes, eof: bool) -> None:
        """To its standard input. Raises AgentError when that is closed, or when it does not read."""
        if self._stdin is None or self._eof:
            raise conflict(
                "the command's standard input is closed; start it with keepStdin to write to it", id=self.id
            )
        if len(self._waiting) + len(data) > _STDIN_WAITING:
            raise AgentError(
                "rate_limited", f"the command has not read {len(self._waiting)} bytes yet; write more later"
            )
        self._waiting += data
        self._eof = eof
        self._writable()

    def close(self) -> None:
        """Kill what still runs and give everything back."""
        self.kill("interrupted")
        if self._timer is not None:
            self._timer.cancel()
        self._close_stdin()
        for handle in tuple(self._outputs):
            self._close_output(handle)
        self.journal.close()

    # -- inside ----------------------------------------------------------------------------------

    def _writable(self) -> None:
        handle = self._stdin
        if handle is None:
            return
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                del self._waiting[: os.write(handle, self._waiting[:_CHUNK])]
        except BlockingIOError:
            loop.add_writer(handle, self._writable)
            return
        except OSError:  # it reads no more
            self._close_stdin()
            return
        loop.remove_writer(handle)
        if self._eof:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            asyncio.get_running_loop().remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = None
            self._waiting.clear()
            self._eof = True

    def _readable(self, handle: int) -> None:
        """One piece of output, if there is one. After the end (a child that lives on) it goes nowhere."""
        try:
            data = os.read(handle, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._output(handle, data)

    def _output(self, handle: int, data: bytes) -> None:
        name, decoder = self._outputs[handle]
        if self.running:
            text = decoder.decode(data, final=not data)
            if text:
                self.journal.append(text.encode(), to=name)
        if not data:
            self._close_output(handle)

    def _close_output(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        self._outputs.pop(handle, None)

    def _drain(self, handle: int) -> None:
        """Everything that was written before the end (a child that lives on may write without end)."""
        try:
            for _ in range(_LAST_CHUNKS):
                data = os.read(handle, _CHUNK)
                self._output(handle, data)
                if not data:
                    return
        except BlockingIOError:
            name, decoder = self._outputs[handle]
            rest = decoder.decode(b"", final=True)
            if rest:
                self.journal.append(rest.encode(), to=name)

    def _exited(self, returncode: int) -> None:
        self._deadlines.clear(self)
        for handle in tuple(self._outputs):
            self._drain(handle)
        self._close_stdin()
        if self._timer is not None:
            self._timer.cancel()
        self._exit_code = returncode
        self._completed = time.time()
        self._end = end_of(self._stop, returncode)
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()


def _cannot_run(program: str, error: OSError | ValueError) -> AgentError:
    """What to tell who asked for it."""
    if isinstance(error, OSError) and error.errno in (errno.EAGAIN, errno.ENOMEM):
        return AgentError(
            "quota_exceeded",
            f"{program[:200]!r} cannot be run: the sandbox has as many processes as it may, or no memory"
            " left; end something in it and try again",
            {"kind": errno.errorcode[error.errno]},
        )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    kind = errno.errorcode.get(error.errno or 0, "EIO") if isinstance(error, OSError) else "EINVAL"
    return invalid(f"{program[:200]!r} cannot be run: {reason}", program=program[:200], kind=kind)


def end_of(stop: str | None, returncode: int) -> str:
    """The honest word for a command's end: one that ended well in spite of a signal ended well."""
    if returncode == 0 and stop in (None, "interrupted"):
        return "ok"
    return stop or "error"
