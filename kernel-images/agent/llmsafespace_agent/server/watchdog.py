"""Keeps the sandbox within its memory: ends what uses most before the kernel has to, and tells honestly.

Where a cgroup enforces the limit, the kernel may be quicker; then this module knows that it was memory.
Where none does, this is what enforces it: all kinds of memory are counted (memory.py), the more often the
less room is left, so that even the fastest allocator is seen before it has taken twice its share.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llmsafespace_agent.inside import memory
from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.server.cgroup import MemoryGroup
from llmsafespace_protocol.configuration import SandboxLimits

_PERIOD = 0.1
_SHORTEST, _LONGEST = 0.01, 0.25  # between counts of everything
_RATE = 6 * 1024**3  # bytes a second that the fastest allocators take
_SHARE, _SHARE_WHEN_NEAR = 0.1, 0.5  # of a processor, that counting may take
_HELPLESS = 20  # polls over the limit without hope, after which the sandbox ends
_DYING = 2.0  # seconds that what was killed may take to be gone: it needs a processor for that
_GROWTH = 0.25  # of the limit: what is taken meanwhile is not taken by what was killed
_SELDOM = 0.3  # seconds between exact counts while there is much room, for they cost time
_NEAR = 0.8  # below this share of the limit nothing is looked at more closely
_FAST = 1 / 16  # of the limit: who takes that much between two counts is soon near it


class Suspect(NamedTuple):
    """Something that can be killed for its memory."""

    pid: int
    kill: Callable[[], None]


class Watchdog:
    """Polls while it has a limit; `suspects` are the kernels and commands of the moment.

    `give_up(reason)` ends the sandbox: its memory is over the limit and no suspect holds it.
    """

    def __init__(
        self,
        limits: SandboxLimits,
        inside: Inside,
        suspects: Callable[[], Iterable[Suspect]],
        give_up: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._inside = inside
        self._limit = limits.memory_bytes
        self._group = MemoryGroup.at(limits.cgroup)
        self._suspects = suspects
        self._give_up = give_up
        # Only process 1 of its own namespaces may take all that these hold for its own.
        self._ledger = memory.Ledger() if limits.cgroup is None and os.getpid() == 1 else None
        self._helpless = 0
        self._over: int | None = None  # what was used when the limit was found to be exceeded
        self._killed: set[int] = set()  # since then
        self._dying_until = 0.0
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

    def at_most(self, amount: int) -> int:
        """`amount`, which was counted by processes, without what that counts twice, as far as can be told.

        gVisor counts for each process also what it shares with others.
        """
        charged = self._group.charged() if self._group is not None else None
        return amount if charged is None else min(amount, charged)

    def used(self, private: int) -> int:
        """The sandbox's memory, whose processes have `private` bytes of their own."""
        if self._ledger is None:
            return self.at_most(private)
        held = self._ledger.by_process()
        return memory.exact_total(held) + self._ledger.shared_and_kernels()

    def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        # Processor time: on a busy machine counting lasts long without costing more, and must not be put off.
        began, before, period = time.thread_time(), self._last, _PERIOD
        if self._limit is not None and self._near():
            if self._ledger is not None:
                self._count_all(self._ledger, self._limit, loop.time())
                period = max(_SHORTEST, min(_LONGEST, (self._limit - self._last) / _RATE))
            else:
                self._last = self._memory(loop.time())
                if self._last >= self._limit:
                    self._end_the_largest()
        limit = self._limit or 0
        near = self._last >= _NEAR * limit or self._last - before >= _FAST * limit
        spent = time.thread_time() - began
        self._timer = loop.call_later(max(period, spent / (_SHARE_WHEN_NEAR if near else _SHARE)), self._poll)

    def _count_all(self, ledger: memory.Ledger, limit: int, now: float) -> None:
        """Count, and end what uses most while it is too much; when that cannot help, the sandbox.

        Killed processes hold their memory until they are gone, which takes long on a busy machine. That does
        not count as helpless for a while, unless more is taken in the meantime: others take it then.
        """
        held = ledger.by_process()
        common = ledger.shared_and_kernels()
        self._last = sum(held.values()) + common
        if self._last >= limit and memory.least_total(held) + common < limit:
            self._last = memory.exact_total(held) + common
        if self._last < limit:
            self._helpless, self._over = 0, None
            self._killed.clear()
            return
        if self._over is None:
            self._over = self._last
        if memory.system_v() > limit // 10:
            memory.remove_system_v()  # what is attached stays until its processes are gone
        suspects = [
            (sum(held.get(pid, 0) for pid in self._inside.family(one.pid)), one) for one in self._suspects()
        ]
        if suspects:
            largest = max(suspects, key=lambda pair: pair[0])[1]
            if largest.pid not in self._killed:
                self._killed.add(largest.pid)
                self._dying_until = now + _DYING
            largest.kill()
        if now < self._dying_until and self._last < self._over + _GROWTH * limit:
            return
        self._helpless += 1
        if self._helpless >= _HELPLESS:
            self._give_up("The sandbox has used more memory than its limit.")

    def _memory(self, now: float) -> int:
        """The private memory of the whole sandbox, in bytes."""
        if self._group is not None:
            known = self._group.anonymous()
            if known is not None:
                return known
        bound = self.at_most(self._inside.most_memory())  # too much, because forked processes share
        if bound < (self._limit or 0):
            return bound
        if now < self._exact_after:
            return self._last
        exact = self.at_most(self._inside.exact_memory())
        self._exact_after = now + (0.0 if exact >= _NEAR * (self._limit or 0) else _SELDOM)
        return exact

    def _near(self) -> bool:
        """A cheap look first: all that is charged, where a cgroup knows it."""
        charged = self._group.charged() if self._group is not None else None
        return charged is None or charged >= _NEAR * (self._limit or 0)

    def _end_the_largest(self) -> None:
        suspects = [(self._inside.memory(one.pid), one) for one in self._suspects()]
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
