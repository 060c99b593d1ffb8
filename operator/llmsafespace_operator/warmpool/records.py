"""What the operator remembers about pools between two rounds. Losing it at a restart does no harm."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from llmsafespace_kube.api.objects import Key
from llmsafespace_operator.warmpool import metrics
from llmsafespace_operator.warmpool.plan import Wish, backoff

_WINDOW = 10.0  # seconds over which claims are counted
_FIRST_LEAD = 5.0  # seconds; the lead time before one has been measured
_WEIGHT = 0.2  # weight of the newest lead time in the moving average


class Record:
    """The record of one pool: its load, the duration of starts, and failures. Times are monotonic."""

    def __init__(self) -> None:
        self.lead = _FIRST_LEAD
        self.wishes: tuple[Wish, ...] | None = None
        self.desired: int | None = None
        self.revision = ""
        self.retry_at = 0.0
        self.reported_at = float("-inf")
        self.scaled = False  # since the last report
        self.problems: list[str] | None = None  # of preloading; None: not read from an agent yet
        self._arrivals: deque[float] = deque()
        self._measured = False
        self._born: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._failures = 0
        self._failure = ""

    def claimed(self) -> None:
        """A pod was claimed now."""
        self._arrivals.append(time.monotonic())
        self._forget_old()  # also here: in a standby nobody calls `rate`

    def rate(self) -> float:
        """Return the claims per second over the last 10 seconds."""
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
        """A WarmPod is ready. Returns how many seconds it took; None if this process did not create it."""
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
        """A start failed. Failures before `retry_at` count as one with the first."""
        self._failure = message
        if time.monotonic() >= self.retry_at:
            self._failures += 1
            self.retry_at = time.monotonic() + backoff(self._failures)

    def changed(self, revision: str) -> None:
        """The pool has a new revision: earlier failures and problems no longer count."""
        self.revision = revision
        self.problems = None
        self._failures, self._failure, self.retry_at = 0, "", 0.0

    def troubled(self, name: str, message: str) -> bool:
        """Record what keeps a WarmPod from starting ("": nothing); return whether that has changed."""
        before = self._troubles.pop(name, "")
        if message:
            self._troubles[name] = message
        return before != message

    def gone(self, name: str) -> None:
        """A WarmPod has been deleted."""
        self._born.pop(name, None)
        self._troubles.pop(name, None)

    def trouble(self) -> str:
        """Return what keeps a WarmPod from starting now, or the last failure if no start succeeded since."""
        return next(iter(self._troubles.values()), self._failure)


class Records:
    """The records of all pools. `on_news` is called with the key of a pool whose status may change."""

    def __init__(self) -> None:
        self.on_news: Callable[[Key], None] | None = None
        self._records: dict[Key, Record] = {}

    def of(self, pool: Key) -> Record:
        """Return the record of a pool; create it if it does not exist."""
        return self._records.setdefault(pool, Record())

    def note(self, pool: Key, name: str, trouble: str) -> None:
        """Record what keeps a WarmPod of the pool from starting ("": nothing)."""
        if (trouble or pool in self._records) and self.of(pool).troubled(name, trouble):
            self._notify(pool)

    def note_problems(self, pool: Key, problems: list[str]) -> None:
        """Record which of the pool's packages and scripts could not be preloaded."""
        self.of(pool).problems = problems
        if problems:
            self._notify(pool)

    def gone(self, pool: Key, name: str) -> None:
        """A WarmPod of the pool has been deleted."""
        if pool in self._records:
            self._records[pool].gone(name)

    def forget(self, pool: Key) -> None:
        """The pool has been deleted."""
        self._records.pop(pool, None)
        metrics.forget(pool)

    def _notify(self, pool: Key) -> None:
        if self.on_news is not None:
            self.on_news(pool)
