"""Expectations: creates and deletes that were sent and that the informer does not show yet.

The informer's cache is older than our own writes. A controller that counted the cache alone would create the
same objects again. It therefore waits until its expectations are met, or are older than the limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from llmsafespace_kube.api.objects import Key

LIMIT = 60.0  # seconds until an expectation is dropped: longer than a broken watch can go unnoticed


class Expectations:
    """For each owner, the names of objects that the informer will soon show as created or deleted.

    Call `expect_…` before the write. If the write certainly failed, call `observed_…` as well.
    """

    def __init__(self, *, limit: float = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._created: dict[Key, dict[str, float]] = {}
        self._deleted: dict[Key, dict[str, float]] = {}

    def expect_created(self, owner: Key, names: Iterable[str]) -> None:
        """These objects of the owner are about to be created."""
        self._created.setdefault(owner, {}).update(dict.fromkeys(names, self._clock()))

    def expect_deleted(self, owner: Key, names: Iterable[str]) -> None:
        """These objects of the owner are about to be deleted."""
        self._deleted.setdefault(owner, {}).update(dict.fromkeys(names, self._clock()))

    def observed_created(self, owner: Key, name: str) -> None:
        """The informer shows the object."""
        self._created.get(owner, {}).pop(name, None)

    def observed_deleted(self, owner: Key, name: str) -> None:
        """The informer no longer shows the object. Its creation is no longer expected either."""
        self._created.get(owner, {}).pop(name, None)
        self._deleted.get(owner, {}).pop(name, None)

    def satisfied(self, owner: Key) -> bool:
        """True if the informer shows every write for the owner, or the expectations are over the limit."""
        return not self._outstanding(self._created, owner) and not self._outstanding(self._deleted, owner)

    def forget(self, owner: Key) -> None:
        """The owner has been deleted."""
        self._created.pop(owner, None)
        self._deleted.pop(owner, None)

    def _outstanding(self, kind: dict[Key, dict[str, float]], owner: Key) -> bool:
        oldest = self._clock() - self._limit
        left = {name: since for name, since in kind.pop(owner, {}).items() if since > oldest}
        if left:
            kind[owner] = left
        return bool(left)
