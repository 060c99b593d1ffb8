"""Refusals in the audit log, bounded: a key can cause as many as it likes.

Those that a key gets for one action with one outcome are an entry each, REFUSALS_AT_ONCE of them and then one
a second. What is left out is counted: the next entry says how many (`left_out`), or one of its own when no
further refusal comes, or at the gateway's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.access.rates import Buckets

REFUSALS_AT_ONCE = 20
_MOST = 10_000  # counts in memory


class Refusals:
    """`audit(principal, action, target, outcome, **details)` writes an entry."""

    def __init__(self, audit: Callable[..., None], clock: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._clock = clock
        self._buckets = Buckets(1.0, REFUSALS_AT_ONCE)
        self._left_out: dict[str, tuple[Principal, str, str, int]] = {}

    def take(self, principal: Principal, action: str, code: str) -> dict[str, int] | None:
        """What to add to the refusal's entry: how many were left out before. None: leave it out, too."""
        mark = f"{principal.key_id}\0{action}\0{code}"
        known = self._left_out.get(mark)
        count = known[-1] if known is not None else 0
        if self._buckets.take(mark, self._clock())[0]:
            self._left_out.pop(mark, None)
            return {"left_out": count} if count else {}
        if len(self._left_out) >= _MOST:
            self.flush()
        self._left_out[mark] = (principal, action, code, count + 1)
        return None

    def flush_past(self) -> None:
        """Write the counts to which no refusal came for a second."""
        now = self._clock()
        for mark in list(self._left_out):
            if self._buckets.level(mark, now) >= 1:
                self._buckets.take(mark, now)
                self._write(mark)

    def flush(self) -> None:
        """Write every count, as far as it has come."""
        for mark in list(self._left_out):
            self._write(mark)

    def _write(self, mark: str) -> None:
        principal, action, code, count = self._left_out.pop(mark)
        self._audit(principal, action, "", code, left_out=count)
