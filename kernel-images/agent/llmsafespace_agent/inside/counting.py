"""Counts all memory of a sandbox where no cgroup does, the more often the less room is left.

So even the fastest allocator is seen before it has taken twice its share. Counting leaves most of the
processor to others while there is much room.
"""

from __future__ import annotations

import time

from llmsafespace_agent.inside import memory, processes

NEAR = 0.8  # below this share of the limit nothing is looked at more closely
PERIOD = 0.1
_SHORTEST, _LONGEST = 0.01, 0.25
_RATE = 6 * 1024**3  # bytes a second that the fastest allocators take
_SHARE, _SHARE_WHEN_NEAR = 0.1, 0.5  # of a processor, that counting may take
_FAST = 1 / 16  # of the limit: who takes that much between two counts is soon near it


class Counter:
    """Counts against `limit` bytes. `last` is what was used at the last count."""

    def __init__(self, limit: int, ledger: memory.Ledger) -> None:
        self._limit = limit
        self._ledger = ledger
        self._pause = Pause(limit)
        self.last = 0

    def count(self, roots: list[int]) -> dict[int, int]:
        """Count anew. Over the limit, what each of `roots` holds with everything below it; else nothing."""
        self._pause.began()
        held = self._ledger.by_process()
        common = self._ledger.shared_and_kernels()
        self.last = sum(held.values()) + common
        if self.last >= self._limit and memory.least_total(held) + common < self._limit:
            self.last = memory.exact_total(held) + common
        if self.last < self._limit:
            return {}
        if memory.system_v() > self._limit // 10:
            memory.remove_system_v()  # what is attached stays until its processes are gone
        families = {pid: [pid, *processes.descendants(pid)] for pid in roots}
        return {pid: sum(held.get(one, 0) for one in family) for pid, family in families.items()}

    def pause(self) -> float:
        """Seconds until the next count; call right after `count`."""
        return self._pause.after(self.last, max(_SHORTEST, min(_LONGEST, (self._limit - self.last) / _RATE)))


class Pause:
    """How long to wait between two looks at memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._before = 0
        self._began = 0.0

    def began(self) -> None:
        """Looking begins now. Processor time counts: on a busy machine that lasts without costing more."""
        self._began = time.thread_time()

    def after(self, used: int, wished: float) -> float:
        """Seconds to wait when `used` bytes were found: as `wished`, or more where looking costs much."""
        near = used >= NEAR * self._limit or used - self._before >= _FAST * self._limit
        self._before = used
        spent = time.thread_time() - self._began
        return max(wished, spent / (_SHARE_WHEN_NEAR if near else _SHARE))
