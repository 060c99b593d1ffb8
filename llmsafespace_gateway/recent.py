"""What was seen lately, within bounds."""

from __future__ import annotations


class Recent:
    """The last `limit` ids that were added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: dict[str, None] = {}

    def add(self, id_: str) -> None:
        """Remember one, and forget the oldest when there are too many."""
        self._ids[id_] = None
        if len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]

    def __contains__(self, id_: str) -> bool:
        return id_ in self._ids
