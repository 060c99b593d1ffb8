"""The way inside of an agent in a sandbox of its own: a worker in the code's does what is wished for.

Code may slow the worker down or, at worst, take it over. So nothing here waits for it without a limit, what
waits to be sent is bounded, and the worker can say nothing but figures. When it is gone, all processes of the
code are: whoever watches one is told so, then `on_end` is called.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from llmsafespace_agent.inside import rooted
from llmsafespace_agent.inside.inside import NOWHERE, OnCount, Streams, Total
from llmsafespace_agent.inside.worker import protocol

_START = 60.0  # seconds that a machine may take to start the worker
_SPAWN = 30.0  # to start a process: on a busy machine it takes long, and the caller has a limit of its own
_MEASURE = 0.2
_HELD = 1.0
_WAITING = 64 * 1024 * 1024  # bytes of wishes that a worker which reads nothing may leave
_CHUNK = 65536
_UNCLAIMED = 1024
_MOST_HELD = 4096


class RemoteProcesses:
    """Implements Inside, over `descriptor`, a socket to the worker."""

    def __init__(self, descriptor: int) -> None:
        self.total = Total()
        self.on_end: Callable[[], None] = lambda: None
        self._sock = socket.socket(fileno=descriptor)
        self._sock.setblocking(False)
        os.set_inheritable(descriptor, False)
        self._loop = asyncio.get_running_loop()
        self._root = -1
        self._listener: int | None = None
        self._no_listener = errno.EPROTO
        self._hello: asyncio.Future[int] = self._loop.create_future()
        self._number = 0
        self._asked: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._abandoned: set[int] = set()  # spawns that nobody waits for any more
        self._spawned: set[int] = set()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._dead: dict[int, int] = {}
        self._held: dict[int, dict[int, int]] = {}
        self._on_count: OnCount = lambda used, held: None
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = 0
        self._in = bytearray()
        self._came: list[int] = []
        self.ended = False

    async def start(self, nice: int, port: int, workspace: str) -> None:
        """Meet the worker: it makes the code's loopback listener on `port` (0: none). Raises OSError."""
        self._loop.add_reader(self._sock, self._readable)
        self._send(("setup", nice, port, workspace))
        try:
            failure = await asyncio.wait_for(self._hello, _START)
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "the sandbox's worker did not start in time") from error
        if not self._came:
            raise OSError(errno.EPROTO, "the sandbox's worker sent no root")
        self._root, *listeners = self._came
        self._came = []
        self._listener = listeners[0] if listeners and not failure else None
        self._no_listener = failure if failure in errno.errorcode else errno.EPROTO

    def reach(self, path: str) -> str:
        return f"/proc/self/fd/{self._root}{path}"

    def folder_error(self, path: str) -> int:
        try:
            os.close(rooted.open_folder(self._root, path))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def make_folders(self, path: str) -> None:
        rooted.make_folders(self._root, path)

    def listener(self, port: int) -> int | None:
        if self._listener is None:
            raise OSError(self._no_listener, os.strerror(self._no_listener))
        return self._listener

    # -- one process -----------------------------------------------------------------------------

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        streams: Streams,
        *,
        passed: Sequence[int] = (),
        dies_first: bool = False,
    ) -> Awaitable[int]:
        given = {number: fd for number, fd in enumerate(streams) if fd != NOWHERE}
        given |= {fd: fd for fd in passed}
        words = [os.fsencode(word) for word in argv]
        names = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        if any(b"\0" in word for word in words):
            raise ValueError("embedded null byte")
        numbers = list(given)
        number, answer = self._ask(
            "spawn", words, names, os.fsencode(cwd), numbers, dies_first, descriptors=list(given.values())
        )
        return asyncio.ensure_future(self._spawned_by(number, answer))

    async def _spawned_by(self, number: int, answer: asyncio.Future[tuple[int, ...]]) -> int:
        try:
            pid, failure = (await asyncio.wait_for(answer, _SPAWN))[:2]
        except TimeoutError as error:
            self._abandoned.add(number)
            raise OSError(errno.EAGAIN, "the sandbox is too busy to start a process") from error
        except asyncio.CancelledError:
            self._abandoned.add(number)
            raise
        finally:
            self._asked.pop(number, None)
        if failure or pid <= 1:
            failure = failure if failure in errno.errorcode else errno.EPROTO
            raise OSError(failure, os.strerror(failure))
        self._spawned.add(pid)
        return pid

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        if pid in self._dead or self.ended:
            self._loop.call_soon(callback, self._dead.pop(pid, -signal.SIGKILL))
            return
        self._watched[pid] = callback
        if pid not in self._spawned:
            self._send(("watch", pid))
        self._spawned.discard(pid)

    def kill(self, pid: int) -> None:
        self._send(("signal", pid, signal.SIGKILL.value, protocol.ONE))

    def signal_group(self, pid: int, number: int) -> None:
        self._send(("signal", pid, int(number), protocol.GROUP))

    def signal_tree(self, pid: int, number: int) -> None:
        self._send(("signal", pid, int(number), protocol.TREE))

    # -- all of them -----------------------------------------------------------------------------

    def kill_all(self) -> None:
        self._send(("kill_all",))

    async def measure(self) -> Total:
        number, answer = self._ask("measure")
        with suppress(TimeoutError, OSError):
            used, cpu, count, disk = await asyncio.wait_for(answer, _MEASURE)
            self.total = Total(max(0, used), max(0, cpu) / 1e6, max(0, count), max(0, disk))
        self._asked.pop(number, None)
        return self.total

    async def held(self, pids: Sequence[int]) -> dict[int, int]:
        number, answer = self._ask("held", list(pids))
        self._held[number] = {}
        with suppress(TimeoutError, OSError):
            await asyncio.wait_for(answer, _HELD)
        self._asked.pop(number, None)
        return self._held.pop(number)

    def count_memory(self, limit: int, on_count: OnCount) -> bool:
        self._on_count = on_count
        self._send(("count", limit))
        return True

    def stop_counting(self) -> None:
        self._send(("count", 0))

    def most_memory(self) -> int:
        return self.total.memory

    def exact_memory(self) -> int:
        return self.total.memory

    # -- what is sent ----------------------------------------------------------------------------

    def _ask(
        self, *wish: object, descriptors: Sequence[int] = ()
    ) -> tuple[int, asyncio.Future[tuple[int, ...]]]:
        self._number = self._number % 0xFFFFFFFF + 1
        answer: asyncio.Future[tuple[int, ...]] = self._loop.create_future()
        self._asked[self._number] = answer
        if not self._send((wish[0], self._number, *wish[1:]), descriptors):
            answer.set_exception(OSError(errno.EAGAIN, "the sandbox does not react"))
        return self._number, answer

    def _send(self, wish: tuple[object, ...], descriptors: Sequence[int] = ()) -> bool:
        """Send at once, or as soon as the worker takes it; False when it is gone, or takes nothing."""
        if self.ended or self._waiting > _WAITING:
            return False
        data = memoryview(protocol.pack(wish))
        self._out.append((data, list(map(os.dup, descriptors))))
        self._waiting += len(data)
        if len(self._out) == 1:
            self._writable()
        return True

    def _writable(self) -> None:
        try:
            while self._out:
                data, descriptors = self._out[0]
                sent = (
                    socket.send_fds(self._sock, [data], descriptors) if descriptors else self._sock.send(data)
                )
                for fd in descriptors:
                    os.close(fd)
                self._waiting -= sent
                if sent == len(data):
                    self._out.popleft()
                else:
                    self._out[0] = (data[sent:], [])
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._writable)
            return
        except OSError:
            self._loop.call_soon(self._lost)
        self._loop.remove_writer(self._sock)

    # -- what comes ------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data, passed, _, _ = socket.recv_fds(self._sock, _CHUNK, 0 if self._hello.done() else 2)
        except BlockingIOError:
            return
        except OSError:
            data, passed = b"", []
        for fd in passed:
            os.set_inheritable(fd, False)
            self._came.append(fd)
        if not data:
            self._lost()
            return
        self._in += data
        size = protocol.FRAME.size
        whole = len(self._in) - len(self._in) % size
        frames = list(protocol.FRAME.iter_unpack(bytes(self._in[:whole])))
        del self._in[:whole]
        for kind, number, *figures in frames:
            self._frame(kind, number, tuple(figures))

    def _frame(self, kind: int, number: int, figures: tuple[int, ...]) -> None:
        if kind == protocol.HELLO and not self._hello.done():
            self._hello.set_result(figures[0])
        elif kind == protocol.DIED:
            self._died(figures[0], max(-128, min(255, figures[1])))
        elif kind == protocol.HELD:
            held = self._held.setdefault(0, {}) if number == 0 else self._held.get(number, {})
            if len(held) < _MOST_HELD:
                held[figures[0]] = figures[1]
        elif kind == protocol.COUNT:
            self._on_count(figures[0], self._held.pop(0, {}))
        elif kind in (protocol.ANSWER, protocol.TOTAL):
            answer = self._asked.get(number)
            if answer is not None and not answer.done():
                answer.set_result(figures)
            elif number in self._abandoned:
                self._abandoned.discard(number)
                self.signal_tree(figures[0], signal.SIGKILL)

    def _died(self, pid: int, returncode: int) -> None:
        self._spawned.discard(pid)
        callback = self._watched.pop(pid, None)
        if callback is not None:
            self._loop.call_soon(callback, returncode)
            return
        self._dead[pid] = returncode
        if len(self._dead) > _UNCLAIMED:
            del self._dead[next(iter(self._dead))]

    def _lost(self) -> None:
        """The worker is gone, and every process of the code with it."""
        if self.ended:
            return
        self.ended = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        for _, descriptors in self._out:
            for fd in descriptors:
                os.close(fd)
        self._out.clear()
        if not self._hello.done():
            self._hello.set_exception(OSError(errno.EPIPE, "the sandbox's worker has ended"))
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(OSError(errno.EPIPE, "the sandbox's worker has ended"))
        watched, self._watched = self._watched, {}
        for callback in watched.values():
            self._loop.call_soon(callback, -signal.SIGKILL.value)
        self._loop.call_soon(self.on_end)
