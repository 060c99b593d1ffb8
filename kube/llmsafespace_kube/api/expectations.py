"""What was written and is not in the informer yet, so that a stale cache never leads to a second write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from llmsafespace_kube.api.objects import Key

LIMIT = 60.0  # seconds until an expectation is given up: even what a silent watch hid is known by then


class Expectations:
    """Names of objects that an owner waits to see created, or to see gone.

    Expect before the write; when the write fails for certain, say `observed` all the same.
    """

    def __init__(self, *, limit: float = LIMIT, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._created: dict[Key, dict[str, float]] = {}
        self._deleted: dict[Key, dict[str, float]] = {}

    def expect_created(self, owner: Key, names: Iterable[str]) -> None:
        """These are about to be created."""
        self._created.setdefault(owner, {}).update(dict.fromkeys(names, self._clock()))

    def expect_deleted(self, owner: Key, names: Iterable[str]) -> None:
        """These are about to be deleted."""
        self._deleted.setdefault(owner, {}).update(dict.fromkeys(names, self._clock()))

    def observed_created(self, owner: Key, name: str) -> None:
        """The informer has it."""
        self._created.get(owner, {}).pop(name, None)

    def observed_deleted(self, owner: Key, name: str) -> None:
        """The informer no longer has it (nor will it be seen created, if that was still expected)."""
        self._created.get(owner, {}).pop(name, None)
        self._deleted.get(owner, {}).pop(name, None)

    def satisfied(self, owner: Key) -> bool:
        """True when the informer shows all that was written for the owner, or ought to have by now."""
        return not self._outstanding(self._created, owner) and not self._outstanding(self._deleted, owner)

    def forget(self, owner: Key) -> None:
        """The owner is no more."""
        self._created.pop(owner, None)
        self._deleted.pop(owner, None)

    def _outstanding(self, kind: dict[Key, dict[str, float]], owner: Key) -> bool:
        oldest = self._clock() - self._limit
        left = {name: since for name, since in kind.pop(owner, {}).items() if since > oldest}
        if left:
            kind[owner] = left
        return bool(left)
