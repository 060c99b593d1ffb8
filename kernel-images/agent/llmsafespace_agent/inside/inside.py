"""All that the agent does among the processes of the code, in one place: start, signal, await, measure, kill.

Nobody else in the agent starts a process, names one to the kernel, or reads of one in /proc. Processes are
known by their numbers as the code sees them. What a process is to talk by (a log, pipes, a socket) is made by
who starts it, and handed over as descriptors.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from llmsafespace_agent.inside import processes
from llmsafespace_agent.inside.reaper import Reaper

NOWHERE = subprocess.DEVNULL


class Streams(NamedTuple):
    """Descriptors that become a process's standard streams, or NOWHERE."""

    stdin: int
    stdout: int
    stderr: int


class Total(NamedTuple):
    """What all processes use, the agent's own and those that have ended included."""

    memory: int
    cpu: float
    processes: int


class Inside:
    """The processes of one sandbox. `nice` is how far they give way to the agent."""

    def __init__(self, nice: int = 0) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0) + nice if nice else None
        self._reaper = Reaper()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to collect the dead. Call once, from the main thread."""
        self._reaper.start(loop)

    def stop(self) -> None:
        """Collect nothing any more."""
        self._reaper.stop()

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
    ) -> int:
        """Start a process in a session of its own; returns its number, which is its group's, too.

        `passed` are further descriptors, which keep their numbers. `dies_first`: memory pressure is to kill
        it before the agent, which has to tell of it; kernels see to that themselves.
        Raises OSError or ValueError when it cannot be started.
        """
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
        """Call `callback(returncode)` once when this process is dead; see Reaper.watch."""
        self._reaper.watch(pid, callback)

    def kill(self, pid: int) -> None:
        """SIGKILL to one process."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def signal_group(self, pid: int, number: signal.Signals) -> None:
        """Signal a process that was started here, and what is still in its group."""
        if pid > 1:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def signal_tree(self, pid: int, number: signal.Signals) -> None:
        """As `signal_group`, and everything below it that has left the group."""
        processes.signal_tree(pid, number)

    def family(self, pid: int) -> list[int]:
        """A process and everything below it."""
        return [pid, *processes.descendants(pid)]

    def memory(self, pid: int) -> int:
        """Private bytes of a process and everything below it; what they share counts for each."""
        return processes.tree_memory(pid)

    # -- all of them -----------------------------------------------------------------------------

    def most_memory(self) -> int:
        """As `memory`, of all: never less than the truth, and quick."""
        return processes.tree_memory(os.getpid())

    def exact_memory(self) -> int:
        """As `most_memory`, but shared bytes count once. Costs milliseconds for each process."""
        return sum(map(processes.exact_memory, self.family(os.getpid())))

    def total(self) -> Total:
        """What they use now, and have used."""
        living = self.family(os.getpid())
        uses = [processes.use(pid) for pid in living]
        collected = os.times()
        cpu = sum(one.cpu for one in uses) + collected.children_user + collected.children_system
        return Total(sum(one.memory for one in uses), cpu, len(living))

    def kill_all(self) -> None:
        """SIGKILL to every process of the code, also to what is forked meanwhile."""
        processes.kill_descendants(os.getpid())
