"""Guests of a sandbox lose it when their grant ends: noticed by looking at the grants that are in use."""

from __future__ import annotations

import logging
from collections.abc import Callable

from llmsafespace_gateway.store import Store, grants

log = logging.getLogger(__name__)


class GrantWatches:
    """Callbacks of what guests have open. Costs nothing while no guest is connected."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[tuple[str, str, str], set[Callable[[], None]]] = {}

    def add(
        self, sandbox_id: str, user_id: str, level: str, callback: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `callback` once when the user's grant is not `level` any more; returns how to unsubscribe."""
        grant = (sandbox_id, user_id, level)
        watchers = self._watchers.setdefault(grant, set())
        watchers.add(callback)

        def unsubscribe() -> None:
            watchers.discard(callback)
            if not watchers and self._watchers.get(grant) is watchers:
                del self._watchers[grant]

        return unsubscribe

    async def poll(self) -> None:
        """Look whether the grants in use are still there."""
        if not self._watchers:
            return
        watched = list(self._watchers)
        rows = await grants.of_sandboxes(self._store, {grant[0] for grant in watched})
        there = {(row.sandbox_id, row.user_id, row.level) for row in rows}
        for grant in watched:
            if grant not in there:
                self._lost(grant)

    def _lost(self, grant: tuple[str, str, str]) -> None:
        for callback in list(self._watchers.pop(grant, ())):
            try:
                callback()
            except Exception:
                log.exception("a guest's connection to sandbox %s could not be closed", grant[0])
