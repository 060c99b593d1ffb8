"""Keeps the sandbox within its memory: ends what uses most before the kernel has to, and tells honestly.

Where a cgroup enforces the limit, the kernel may be quicker; then this module knows that it was memory.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llmsafespace_agent.server import processes
from llmsafespace_agent.server.cgroup import MemoryGroup
from llmsafespace_agent.wire.configuration import SandboxLimits

_PERIOD = 0.1
_SELDOM = 0.3  # seconds between exact counts while there is much room, for they cost time
_NEAR = 0.8  # below this share of the limit nothing is looked at more closely


class Suspect(NamedTuple):
    """Something that can be killed for its memory."""

    pid: int
    kill: Callable[[], None]


class Watchdog:
    """Polls while it has a limit; `suspects` are the kernels and commands of the moment."""

    def __init__(self, limits: SandboxLimits, suspects: Callable[[], Iterable[Suspect]]) -> None:
        self._limit = limits.memory_bytes
        self._group = MemoryGroup.at(limits.cgroup)
        self._suspects = suspects
        self._kills = self._group.kills() if self._group is not None else 0
        self._last = 0
        self._exact_after = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.problems: list[str] = []
        if limits.cgroup is not None and self._group is None:
            self.problems.append("the memory cgroup cannot be read; memory is watched through /proc")

    def start(self) -> None:
        """Begin to watch, where there is a limit."""
        if self._limit is not None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._poll)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def killed(self, returncode: int) -> bool:
        """Whether a process that just ended so was killed by the kernel for lack of memory.

        Where no cgroup can be asked, one that used nearly everything when it was killed counts as such.
        """
        if returncode != -signal.SIGKILL:
            return False
        if self._group is None:
            return self._limit is not None and self._last >= _NEAR * self._limit
        kills = self._group.kills()
        before, self._kills = self._kills, kills
        return kills > before

    def at_most(self, memory: int) -> int:
        """`memory`, which was counted by processes, without what that counts twice, as far as can be told.

        gVisor counts for each process also what it shares with others.
        """
        charged = self._group.charged() if self._group is not None else None
        return memory if charged is None else min(memory, charged)

    def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PERIOD, self._poll)
        if self._limit is None or not self._near():
            return
        self._last = self._memory(loop.time())
        if self._last >= self._limit:
            self._end_the_largest()

    def _memory(self, now: float) -> int:
        """The private memory of the whole sandbox, in bytes."""
        if self._group is not None:
            known = self._group.anonymous()
            if known is not None:
                return known
        bound = self.at_most(processes.tree_memory(os.getpid()))  # too much, because forked processes share
        if bound < (self._limit or 0):
            return bound
        if now < self._exact_after:
            return self._last
        living = (os.getpid(), *processes.descendants(os.getpid()))
        exact = self.at_most(sum(map(processes.exact_memory, living)))
        self._exact_after = now + (0.0 if exact >= _NEAR * (self._limit or 0) else _SELDOM)
        return exact

    def _near(self) -> bool:
        """A cheap look first: all that is charged, where a cgroup knows it."""
        charged = self._group.charged() if self._group is not None else None
        return charged is None or charged >= _NEAR * (self._limit or 0)

    def _end_the_largest(self) -> None:
        suspects = [(processes.tree_memory(one.pid), one) for one in self._suspects()]
        if suspects:
            max(suspects, key=lambda pair: pair[0])[1].kill()


def limit_processes(count: int | None) -> str | None:
    """Let this sandbox's user have at most `count` processes; returns why that is not possible."""
    if count is None:
        return None
    import resource  # seldom needed

    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, wanted))
    except (OSError, ValueError) as error:
        return f"the number of processes cannot be limited: {error}"
    return None
