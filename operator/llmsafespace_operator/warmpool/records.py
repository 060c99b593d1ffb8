"""What the operator remembers of its pools between looks, and loses without harm when it ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from llmsafespace_kube.api.objects import Key
from llmsafespace_operator.warmpool import metrics
from llmsafespace_operator.warmpool.plan import Wish, backoff

_WINDOW = 10.0  # seconds over which claims are counted
_FIRST_LEAD = 5.0  # seconds, until one was measured
_WEIGHT = 0.2  # of the newest lead time in their average


class Record:
    """One pool's: its load, how long starts take, what goes wrong. Times are monotonic."""

    def __init__(self) -> None:
        self.lead = _FIRST_LEAD
        self.wishes: tuple[Wish, ...] | None = None
        self.desired: int | None = None
        self.revision = ""
        self.retry_at = 0.0
        self.reported_at = float("-inf")
        self.scaled = False  # since the last report
        self.problems: list[str] | None = None  # of what is to be preloaded; None: not asked for yet
        self._arrivals: deque[float] = deque()
        self._measured = False
        self._born: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._failures = 0
        self._failure = ""

    def claimed(self) -> None:
        """A pod was claimed now."""
        self._arrivals.append(time.monotonic())
        self._forget_old()  # in a process that does not lead, nobody asks for the rate

    def rate(self) -> float:
        """Claims per second."""
        self._forget_old()
        return len(self._arrivals) / _WINDOW

    def _forget_old(self) -> None:
        since = time.monotonic() - _WINDOW
        while self._arrivals and self._arrivals[0] < since:
            self._arrivals.popleft()

    def created(self, name: str) -> None:
        """A WarmPod was created now."""
        self._born[name] = time.monotonic()

    def ready(self, name: str) -> float | None:
        """A WarmPod is ready: how long it took, None when nobody here saw it begin."""
        self._failures, self._failure, self.retry_at = 0, "", 0.0
        self._troubles.pop(name, None)
        born = self._born.pop(name, None)
        if born is None:
            return None
        took = time.monotonic() - born
        self.lead = took if not self._measured else (1 - _WEIGHT) * self.lead + _WEIGHT * took
        self._measured = True
        return took

    def failed(self, message: str) -> None:
        """A start failed. Those that were under way at once count as one."""
        self._failure = message
        if time.monotonic() >= self.retry_at:
            self._failures += 1
            self.retry_at = time.monotonic() + backoff(self._failures)

    def changed(self, revision: str) -> None:
        """The pool is made differently now: earlier failures and problems say nothing any more."""
        self.revision = revision
        self.problems = None
        self._failures, self._failure, self.retry_at = 0, "", 0.0

    def troubled(self, name: str, message: str) -> bool:
        """What keeps a WarmPod from starting ("" for nothing); True when that is news."""
        before = self._troubles.pop(name, "")
        if message:
            self._troubles[name] = message
        return before != message

    def gone(self, name: str) -> None:
        """A WarmPod is no more."""
        self._born.pop(name, None)
        self._troubles.pop(name, None)

    def trouble(self) -> str:
        """What goes wrong now, in words, or went wrong last, while nothing has come right since."""
        return next(iter(self._troubles.values()), self._failure)


class Records:
    """The records of all pools. `on_news` is called with a pool of which something else is to be told."""

    def __init__(self) -> None:
        self.on_news: Callable[[Key], None] | None = None
        self._records: dict[Key, Record] = {}

    def of(self, pool: Key) -> Record:
        """The record of a pool, made when there is none yet."""
        return self._records.setdefault(pool, Record())

    def note(self, pool: Key, name: str, trouble: str) -> None:
        """What keeps a WarmPod of the pool from starting, "" for nothing."""
        if (trouble or pool in self._records) and self.of(pool).troubled(name, trouble):
            self._tell(pool)

    def note_problems(self, pool: Key, problems: list[str]) -> None:
        """What of the pool's packages and scripts could not be preloaded."""
        self.of(pool).problems = problems
        if problems:
            self._tell(pool)

    def gone(self, pool: Key, name: str) -> None:
        """A WarmPod of the pool is no more."""
        if pool in self._records:
            self._records[pool].gone(name)

    def forget(self, pool: Key) -> None:
        """The pool is no more."""
        self._records.pop(pool, None)
        metrics.forget(pool)

    def _tell(self, pool: Key) -> None:
        if self.on_news is not None:
            self.on_news(pool)
