"""Keeps the sandbox within its memory: ends what uses most before the kernel has to, and tells honestly.

Where a cgroup enforces the limit, the kernel may be quicker; then this module knows that it was memory.
Where none does, this is what enforces it: all kinds of memory are counted among the code's processes (see
counting.py), and what was counted is judged here.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from llmsafespace_agent.inside.counting import NEAR, PERIOD, Pause
from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.server.cgroup import MemoryGroup
from llmsafespace_protocol.configuration import SandboxLimits

_HELPLESS = 20  # polls over the limit without hope, after which the sandbox ends
_DYING = 2.0  # seconds that what was killed may take to be gone: it needs a processor for that
_GROWTH = 0.25  # of the limit: what is taken meanwhile is not taken by what was killed
_SELDOM = 0.3  # seconds between exact counts while there is much room, for they cost time


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
        self._uncharged = limits.cgroup is None
        self._counted = False  # all kinds of memory are counted
        self._helpless = 0
        self._over: int | None = None  # what was used when the limit was found to be exceeded
        self._killed: set[int] = set()  # since then
        self._dying_until = 0.0
        self._kills = self._kills_before = self._group.kills() if self._group is not None else 0
        self._last = 0
        self._exact_after = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self.problems: list[str] = []
        if limits.cgroup is not None and self._group is None:
            self.problems.append("the memory cgroup cannot be read; memory is watched through /proc")

    def start(self) -> None:
        """Begin to watch, where there is a limit."""
        if self._limit is None:
            return
        self._pause = Pause(self._limit)
        self._counted = self._uncharged and self._inside.count_memory(self._limit, self.judge)
        if not self._counted:
            self._timer = asyncio.get_running_loop().call_later(PERIOD, self._poll)

    def stop(self) -> None:
        """Watch no more."""
        if self._counted:
            self._inside.stop_counting()
        if self._timer is not None:
            self._timer.cancel()
        if self._ending is not None:
            self._ending.cancel()

    def killed(self, returncode: int) -> bool:
        """Whether a process that just ended so was killed by the kernel for lack of memory.

        Where no cgroup can be asked, one that used nearly everything when it was killed counts as such.
        """
        if returncode != -signal.SIGKILL:
            return False
        if self._group is None:
            return self._limit is not None and self._last >= NEAR * self._limit
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
        return private if self._counted else self.at_most(private)

    def killed_one(self) -> bool:
        """Whether the kernel has killed anything here for lack of memory since the start."""
        return self._group is not None and self._group.kills() > self._kills_before

    def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        self._pause.began()
        if self._limit is not None and self._near():
            self._last = self._memory(loop.time())
            if self._last >= self._limit and self._ending is None:
                self._ending = asyncio.create_task(self._end_the_largest())
        self._timer = loop.call_later(self._pause.after(self._last, PERIOD), self._poll)

    def judge(self, used: int, held: Mapping[int, int], now: float | None = None) -> None:
        """End what uses most while `used` is too much; when that cannot help, the sandbox.

        Killed processes hold their memory until they are gone, which takes long on a busy machine. That does
        not count as helpless for a while, unless more is taken in the meantime: others take it then.
        """
        limit = self._limit or 0
        now = asyncio.get_running_loop().time() if now is None else now
        self._last = used
        if self._last < limit:
            self._helpless, self._over = 0, None
            self._killed.clear()
            return
        if self._over is None:
            self._over = self._last
        suspects = [(held.get(one.pid, 0), one) for one in self._suspects()]
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
        self._exact_after = now + (0.0 if exact >= NEAR * (self._limit or 0) else _SELDOM)
        return exact

    def _near(self) -> bool:
        """A cheap look first: all that is charged, where a cgroup knows it."""
        charged = self._group.charged() if self._group is not None else None
        return charged is None or charged >= NEAR * (self._limit or 0)

    async def _end_the_largest(self) -> None:
        try:
            suspects = {one.pid: one for one in self._suspects()}
            held = await self._inside.held(list(suspects))
            still = {one.pid: one for one in self._suspects()}
            living = [pid for pid in held if pid in still]
            if living:
                still[max(living, key=lambda pid: held[pid])].kill()
        finally:
            self._ending = None


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
