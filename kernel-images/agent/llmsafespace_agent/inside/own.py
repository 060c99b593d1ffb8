"""The way inside of an agent that is itself the first process of the code's namespaces, or a subreaper."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from llmsafespace_agent.inside import memory, processes
from llmsafespace_agent.inside.counting import NEAR, PERIOD, Counter
from llmsafespace_agent.inside.inside import OnCount, Streams, Total
from llmsafespace_agent.inside.reaper import Reaper
from llmsafespace_agent.inside.space import used_of


class OwnProcesses:
    """Implements Inside. `nice` is how far the code gives way to the agent."""

    def __init__(self, nice: int = 0, workspace: str | None = None) -> None:
        self.total = Total()
        self._nice = os.getpriority(os.PRIO_PROCESS, 0) + nice if nice else None
        self._workspace = workspace
        self._reaper = Reaper()
        self._watched: set[int] = set()
        self._counter: Counter | None = None
        self._ledger: memory.Ledger | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to collect the dead. Call once, from the main thread."""
        self._reaper.start(loop)

    def stop(self) -> None:
        """Collect nothing any more."""
        self._reaper.stop()

    def reach(self, path: str) -> str:
        return path

    def folder_error(self, path: str) -> int:
        try:
            return 0 if stat.S_ISDIR(os.stat(path).st_mode) else errno.ENOTDIR
        except OSError as error:
            return error.errno or errno.EIO

    def make_folders(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def listener(self, port: int) -> int | None:
        return None

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
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            started.set_result(self._spawn(argv, env, cwd, streams, passed, dies_first))
        except (OSError, ValueError) as error:
            started.set_exception(error)
        return started

    def _spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        streams: Streams,
        passed: Sequence[int],
        dies_first: bool,
    ) -> int:
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            start_new_session=True,
            pass_fds=passed,
        )
        process.returncode = 0  # the reaper waits for it, not Popen
        if dies_first:
            processes.raise_oom_score(process.pid)
        if self._nice is not None:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, self._nice)
        return process.pid

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        def told(returncode: int) -> None:
            self._watched.discard(pid)
            callback(returncode)

        self._watched.add(pid)
        self._reaper.watch(pid, told)

    def kill(self, pid: int) -> None:
        processes.kill(pid)

    def signal_group(self, pid: int, number: int) -> None:
        processes.signal_group(pid, number)

    def signal_tree(self, pid: int, number: int) -> None:
        processes.signal_tree(pid, number)

    # -- all of them -----------------------------------------------------------------------------

    def kill_all(self) -> None:
        processes.kill_descendants(os.getpid())

    async def measure(self) -> Total:
        used, cpu, count = processes.total()
        if self._ledger is not None:
            held = self._ledger.by_process()
            used = memory.exact_total(held) + self._ledger.shared_and_kernels()
        disk = used_of(self._workspace) if self._workspace is not None else 0
        self.total = Total(used, cpu, count, disk)
        return self.total

    async def held(self, pids: Sequence[int]) -> dict[int, int]:
        return {pid: processes.tree_memory(pid) for pid in pids}

    def count_memory(self, limit: int, on_count: OnCount) -> bool:
        if os.getpid() != 1:  # only process 1 of its own namespaces may take all that these hold for its own
            return False
        self._ledger = memory.Ledger()
        self._counter = Counter(limit, self._ledger)
        self._timer = asyncio.get_running_loop().call_later(
            PERIOD, self._count, self._counter, limit, on_count
        )
        return True

    def _count(self, counter: Counter, limit: int, on_count: OnCount) -> None:
        before = counter.last
        held = counter.count(list(self._watched))
        self._timer = asyncio.get_running_loop().call_later(
            counter.pause(), self._count, counter, limit, on_count
        )
        if max(before, counter.last) >= NEAR * limit:
            on_count(counter.last, held)

    def stop_counting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def most_memory(self) -> int:
        return processes.tree_memory(os.getpid())

    def exact_memory(self) -> int:
        return sum(map(processes.exact_memory, (os.getpid(), *processes.descendants(os.getpid()))))
