"""The worker: the agent's hand among the code's processes, and the first of them.

It collects the dead, starts, signals and measures processes, as the agent wishes, and says unasked who has
died and when memory grows scarce. It never waits for anything but its next event. Code cannot signal it, as
it is process 1 of its pid namespace and handles no signal but SIGCHLD; but code can slow it down, so that the
agent puts a limit on each wish. When the agent is gone, the worker ends, and the code's processes with it.

One of these is in every sandbox: only what is built into the interpreter is imported, where that will do.
"""

# ruff: noqa: SIM105  # contextlib would cost the worker memory

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import time

from llmsafespace_agent.inside import memory, processes
from llmsafespace_agent.inside.counting import NEAR, PERIOD, Counter
from llmsafespace_agent.inside.space import used_of
from llmsafespace_agent.inside.worker import protocol
from llmsafespace_agent.inside.worker.spawning import Wish, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:  # imports cost memory
    from typing import Any

_PR_SET_DUMPABLE = 4
_UNCLAIMED = 1024
_CLOEXEC = 0x40000000  # MSG_CMSG_CLOEXEC
_DESCRIPTORS = 16  # that may come with one wish
_BACKLOG = 128


class Worker:
    """Everything that the worker knows."""

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock
        self._nice = 0
        self._workspace = ""
        self._said = bytearray()
        self._came: list[int] = []  # descriptors whose wish is not whole yet
        self._watched: set[int] = set()
        self._unclaimed: dict[int, int] = {}
        self._starting: dict[int, Wish] = {}  # by the pipe that tells of exec
        self._ledger = memory.Ledger()
        self._counter: Counter | None = None
        self._limit = 0
        self._next_count = 0.0
        self._poll = select.poll()
        self._wakeup, write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(write, False)
        _signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda number, frame: None)  # the wakeup is what matters
        for fd in (sock.fileno(), self._wakeup):
            self._poll.register(fd, select.POLLIN)

    def serve(self) -> None:
        """Do as the agent wishes until it is gone."""
        while True:
            for fd, _ in self._poll.poll(self._wait()):
                if fd == self._wakeup:
                    self._collect()
                elif fd in self._starting:
                    self._started(fd)
                elif not self._hear():
                    return
            if self._counter is not None and time.monotonic() >= self._next_count:
                self._count(self._counter)

    def _wait(self) -> float | None:
        if self._counter is None:
            return None
        return max(0.0, self._next_count - time.monotonic()) * 1000 + 1

    def _say(self, kind: int, number: int, *figures: int, descriptors: bytes = b"") -> None:
        data = protocol.FRAME.pack(kind, number, *figures, *(0,) * (4 - len(figures)))
        ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptors)] if descriptors else []
        sent = self._sock.sendmsg([data], ancillary)
        if sent < len(data):
            self._sock.sendall(data[sent:])

    # -- the dead --------------------------------------------------------------------------------

    def _collect(self) -> None:
        try:
            while os.read(self._wakeup, 512):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self._watched:
                self._watched.discard(pid)
                self._say(protocol.DIED, 0, pid, code)
                continue
            self._unclaimed.pop(pid, None)
            self._unclaimed[pid] = code
            if len(self._unclaimed) > _UNCLAIMED:
                del self._unclaimed[next(iter(self._unclaimed))]

    def _watch(self, pid: int) -> None:
        code = self._unclaimed.pop(pid, None)
        if code is None or os.path.exists(f"/proc/{pid}"):  # the number was given to a new process
            self._watched.add(pid)
        else:
            self._say(protocol.DIED, 0, pid, code)

    # -- wishes ----------------------------------------------------------------------------------

    def _hear(self) -> bool:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(65536, _socket.CMSG_SPACE(4 * _DESCRIPTORS), _CLOEXEC)
        except ConnectionError:
            return False
        for level, kind, passed in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                whole = len(passed) - len(passed) % 4
                self._came += [int.from_bytes(passed[at : at + 4], "little") for at in range(0, whole, 4)]
        if not data:
            return False
        self._said += data
        while (wish := protocol.unpack(self._said)) is not None:
            getattr(self, f"wish_{wish[0]}")(*wish[1:])
        return True

    def wish_setup(self, nice: int, port: int, workspace: str) -> None:
        """The first one: how far code gives way to the worker, where it listens, what is measured."""
        self._nice = os.getpriority(os.PRIO_PROCESS, 0) + nice if nice else 0
        self._workspace = workspace
        handed = [os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
        failure = 0
        listening = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        if port:
            try:
                listening.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                listening.bind(("127.0.0.1", port))
                listening.listen(_BACKLOG)
                handed.append(listening.fileno())
            except OSError as error:
                failure = error.errno or 1
        packed = b"".join(fd.to_bytes(4, "little") for fd in handed)
        self._say(protocol.HELLO, 0, failure, descriptors=packed)
        listening.close()
        os.close(handed[0])

    def wish_spawn(
        self,
        number: int,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        numbers: list[int],
        dies_first: bool,
    ) -> None:
        wish = Wish(number, argv, env, cwd, numbers, dies_first)
        given, self._came = self._came[: len(numbers)], self._came[len(numbers) :]
        try:
            pipe = spawn(wish, given, self._nice)
        except OSError as error:
            self._say(protocol.ANSWER, number, 0, error.errno or 1)
        else:
            self._starting[pipe] = wish
            self._poll.register(pipe, select.POLLIN)
        finally:
            for fd in given:
                os.close(fd)

    def _started(self, pipe: int) -> None:
        """A process that was forked has become what it should, or failed to."""
        wish = self._starting.pop(pipe)
        self._poll.unregister(pipe)
        failure = int.from_bytes(os.read(pipe, 4), "little")
        os.close(pipe)
        if failure:
            self._unclaimed.pop(wish.pid, None)
            self._say(protocol.ANSWER, wish.number, 0, failure)
            return
        if wish.dies_first:
            processes.raise_oom_score(wish.pid)
        self._say(protocol.ANSWER, wish.number, wish.pid)
        self._watch(wish.pid)

    def wish_watch(self, pid: int) -> None:
        self._watch(pid)

    def wish_signal(self, pid: int, number: int, whom: int) -> None:
        if pid <= 1:
            return
        if whom == protocol.TREE:
            processes.signal_tree(pid, number)
        elif whom == protocol.GROUP:
            processes.signal_group(pid, number)
        else:
            processes.kill(pid)

    def wish_kill_all(self) -> None:
        processes.kill_descendants(os.getpid())

    # -- measures --------------------------------------------------------------------------------

    def wish_measure(self, number: int) -> None:
        used, cpu, count = processes.total()
        if self._counter is not None:
            held = self._ledger.by_process()
            used = memory.exact_total(held) + self._ledger.shared_and_kernels()
        self._say(protocol.TOTAL, number, used, int(cpu * 1e6), count, used_of(self._workspace))

    def wish_held(self, number: int, pids: list[int]) -> None:
        for pid in pids:
            self._say(protocol.HELD, number, pid, processes.tree_memory(pid))
        self._say(protocol.ANSWER, number)

    def wish_count(self, limit: int) -> None:
        """Count all kinds of memory from now on (0: no longer)."""
        self._limit = limit
        self._counter = Counter(limit, self._ledger) if limit else None
        self._next_count = time.monotonic() + PERIOD

    def _count(self, counter: Counter) -> None:
        before = counter.last
        held = counter.count(list(self._watched))
        self._next_count = time.monotonic() + counter.pause()
        if max(before, counter.last) >= NEAR * self._limit:
            for pid, amount in held.items():
                self._say(protocol.HELD, 0, pid, amount)
            self._say(protocol.COUNT, 0, counter.last)


def _protect() -> None:
    """Nobody under the same user may read this process or its memory, or take its descriptors."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(descriptor: int) -> None:
    """Serve the agent behind the socket `descriptor`."""
    _protect()
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # as process 1: ignored
    os.umask(0o022)
    os.set_inheritable(descriptor, False)
    sock: Any = _socket.socket(fileno=descriptor)
    sock.setblocking(True)
    try:
        Worker(sock).serve()
    except ConnectionError:
        pass  # the agent is gone
