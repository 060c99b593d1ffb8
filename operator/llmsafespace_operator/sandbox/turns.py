"""Limits the number of cold starts at the same time. The others wait in the order of their arrival."""

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
        """Return True if the key may start now and has a turn until `leave`; False if it waits."""
        if key not in self._taken and not self._room():
            self._waiting[key] = None
            return False
        self.hold(key)
        return True

    def hold(self, key: Key) -> None:
        """Give the key a turn, even beyond the limit: its start is running already."""
        self._waiting.pop(key, None)
        self._taken.add(key)

    def leave(self, key: Key) -> list[Key]:
        """The key needs no turn (any more). Returns the waiting keys that may start now."""
        self._waiting.pop(key, None)
        self._taken.discard(key)
        return list(islice(self._waiting, self._room()))

    def clear(self) -> None:
        """Forget all keys, when this process becomes the leader."""
        self._taken.clear()
        self._waiting.clear()

    def _room(self) -> int:
        return max(0, self._limit - len(self._taken))
