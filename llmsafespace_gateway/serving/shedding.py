"""What is told about connections that found no room: at most one line a second, however many there were."""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter

no_room_errors = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_EVERY = 1.0


class Tally:
    """Counts by reason, written down together."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._counts: Counter[str] = Counter()
        self._told = 0.0

    def note(self, what: str) -> None:
        """Count one connection; the first of a quiet second is told at once."""
        self._counts[what] += 1
        if time.monotonic() - self._told >= _EVERY:
            self.tell()

    def tell(self) -> None:
        """Write down what was counted since the last time."""
        if not self._counts or time.monotonic() - self._told < _EVERY:
            return
        counts, self._counts = self._counts, Counter()
        self._told = time.monotonic()
        text = ", ".join(f"{count} {what}" for what, count in counts.most_common())
        self._log.warning("connections: %s", text, extra={"fields": {"connections": dict(counts)}})
