"""Decisions of the egress proxy in the audit log, bounded: a sandbox can cause as many as it likes.

Those of one sandbox about one host with one outcome in one minute are one entry with a count, and only so
many hosts of a sandbox are named in a minute: the others are counted together. An entry is written when its
minute is over, when the audit log is read, and at the gateway's end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

HOSTS = 32  # of one sandbox that are named, in a minute
OTHERS = "(other hosts)"
_MINUTE = 60.0
_MOST = 20_000  # entries in memory

Who = tuple[str | None, str | None, str | None]
Add = Callable[[Who, str, str, str, dict[str, Any]], object]


class _Entry:
    __slots__ = ("count", "port", "reason", "who")

    def __init__(self, who: Who, port: int, reason: str) -> None:
        self.who = who
        self.port = port
        self.reason = reason
        self.count = 0


class EgressLog:
    """`add(who, action, target, outcome, details)` writes an entry to the audit log."""

    def __init__(self, add: Add, clock: Callable[[], float] = time.time) -> None:
        self._add = add
        self._clock = clock
        self._minute = 0
        self._entries: dict[tuple[str, str, str], _Entry] = {}
        self._hosts: dict[str, set[str]] = {}

    def note(
        self, who: Callable[[], Who], sandbox: str, host: str, port: int, outcome: str, reason: str
    ) -> None:
        """A decision. `who` is asked for an entry's first: the sandbox may be gone when it is written."""
        if int(self._clock() / _MINUTE) != self._minute or len(self._entries) >= _MOST:
            self.flush()
        hosts = self._hosts.setdefault(sandbox, set())
        if host not in hosts:
            if len(hosts) >= HOSTS:
                host = OTHERS
            else:
                hosts.add(host)
        entry = self._entries.get((sandbox, host, outcome))
        if entry is None:
            entry = self._entries[sandbox, host, outcome] = _Entry(who(), port, reason)
        entry.count += 1

    def flush_past(self) -> None:
        """Write what is of a minute that is over."""
        if self._entries and int(self._clock() / _MINUTE) != self._minute:
            self.flush()

    def flush(self) -> None:
        """Write everything, as far as it has come. The hosts of this minute stay counted."""
        entries, self._entries = self._entries, {}
        for (sandbox, host, outcome), entry in entries.items():
            details = {"host": host, "port": entry.port, "reason": entry.reason, "count": entry.count}
            self._add(entry.who, "egress", sandbox, outcome, details)
        now = int(self._clock() / _MINUTE)
        if now != self._minute:
            self._minute = now
            self._hosts.clear()
