"""Whose cold start may be under way: so many at a time, the others in the order in which they came."""

from __future__ import annotations

from itertools import islice

from llmsafespace_kube.api.objects import Key


class Turns:
    """At most `limit` keys have a turn."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: set[Key] = set()
        self._waiting: dict[Key, None] = {}

    def take(self, key: Key) -> bool:
        """True: its start may be under way until it leaves. False: it waits."""
        if key not in self._taken and not self._room():
            self._waiting[key] = None
            return False
        self.hold(key)
        return True

    def hold(self, key: Key) -> None:
        """Its start is under way already, within the limit or not."""
        self._waiting.pop(key, None)
        self._taken.add(key)

    def leave(self, key: Key) -> list[Key]:
        """It needs no turn, or none any more. Returns those that may take one now."""
        self._waiting.pop(key, None)
        self._taken.discard(key)
        return list(islice(self._waiting, self._room()))

    def clear(self) -> None:
        """Nobody is known to have one, or to wait: another process led meanwhile."""
        self._taken.clear()
        self._waiting.clear()

    def _room(self) -> int:
        return max(0, self._limit - len(self._taken))
