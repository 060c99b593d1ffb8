"""The work queue of a controller: keys that wait to be reconciled, and the pauses after failures."""

from __future__ import annotations

import heapq
import itertools
import random
import time

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.objects import Key

_FIRST_PAUSE = 0.05  # seconds
_LONGEST_PAUSE = 15.0


class WorkQueue:
    """A priority queue of keys.

    * A key is in the queue at most once, however often it is added.
    * No two workers have the same key at the same time.
    * A key that is added while a worker has it is queued again when that worker is done: no change is missed.
    * Keys with a higher priority are taken first; of equal priority, the oldest.
    """

    def __init__(self, name: str) -> None:
        self._order = itertools.count()
        self._heap: list[tuple[int, int, Key]] = []
        self._waiting: dict[Key, tuple[int, float]] = {}  # priority, and when the key was added
        self._taken: set[Key] = set()
        self._again: dict[Key, int] = {}  # priority of keys that were added while a worker had them
        self._adds = metrics.ADDS.labels(name)
        self._duration = metrics.QUEUE_DURATION.labels(name)
        metrics.DEPTH.labels(name).set_function(self.__len__)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: Key, priority: int = 0) -> None:
        """Add the key, or raise its priority if it waits already."""
        if key in self._taken:
            self._again[key] = max(priority, self._again.get(key, priority))
            return
        known, since = self._waiting.get(key, (None, time.monotonic()))
        if known is None:
            self._adds.inc()
        elif known >= priority:
            return
        self._waiting[key] = priority, since
        heapq.heappush(self._heap, (-priority, next(self._order), key))

    def take(self) -> Key | None:
        """Return the next key, or None if the queue is empty. The caller must call `done` afterwards."""
        while self._heap:
            priority, _, key = heapq.heappop(self._heap)
            waiting = self._waiting.get(key)
            if waiting is None or waiting[0] != -priority:
                continue  # an outdated entry: the key was added again with a higher priority
            del self._waiting[key]
            self._taken.add(key)
            self._duration.observe(time.monotonic() - waiting[1])
            return key
        return None

    def clear(self) -> None:
        """Remove all waiting keys. Call it only when no worker has a key."""
        self._heap.clear()
        self._waiting.clear()
        self._again.clear()

    def done(self, key: Key) -> None:
        """The worker has finished the key. It is queued again if it was added in the meantime."""
        self._taken.discard(key)
        priority = self._again.pop(key, None)
        if priority is not None:
            self.add(key, priority)


class Backoff:
    """Pauses after failures, counted for each key: 50 ms at first, doubled by each failure, at most 15 s."""

    def __init__(self) -> None:
        self._failures: dict[Key, int] = {}

    def failed(self, key: Key) -> float:
        """Count a failure; return the seconds until the next try."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
        return pause * random.uniform(0.75, 1.0)  # noqa: S311

    def succeeded(self, key: Key) -> None:
        """Reset the count of failures."""
        self._failures.pop(key, None)
