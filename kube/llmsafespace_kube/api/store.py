"""The store of an informer: the known objects, their indexes, and the version up to which they are complete.

Three sources write to it: lists, watch events, and the answers of our own writes. They can arrive in any
order, so each change is accepted only if its resource version is newer than what is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Generic

from llmsafespace_kube.api.objects import Key, key_of, metadata, version_of
from llmsafespace_kube.api.wire import WatchEvent
from llmsafespace_kube.resources.kinds import T

_log = logging.getLogger(__name__)

Callback = Callable[[T | None, T | None], None]


class _Index(Generic[T]):
    """Finds objects by values that a function returns for them."""

    def __init__(self, values_of: Callable[[T], Iterable[str]]) -> None:
        self._values_of = values_of
        self._items: dict[str, dict[Key, T]] = {}
        self._values: dict[Key, tuple[str, ...]] = {}

    def put(self, key: Key, item: T | None) -> None:
        for value in self._values.pop(key, ()):
            entries = self._items[value]
            del entries[key]
            if not entries:
                del self._items[value]
        if item is not None:
            values = self._values[key] = tuple(set(self._values_of(item)))
            for value in values:
                self._items.setdefault(value, {})[key] = item

    def get(self, value: str) -> list[T]:
        return list(self._items.get(value, {}).values())


class Store(Generic[T]):
    """The objects of some scopes. A scope is a namespace, or "" for the whole cluster.

    Each scope has a version: the store contains every change up to it. The answer of an own write can be
    newer than the scope; an older event or list does not undo it. An observed object that is not newer than
    its scope is ignored, because it has been changed or deleted since. The store therefore need not remember
    deletions.
    """

    def __init__(self, scopes: Iterable[str]) -> None:
        self._items: dict[Key, T] = {}
        self._versions = dict.fromkeys(scopes, 0)
        self._indexes: dict[str, _Index[T]] = {}
        self._callbacks: list[Callback[T]] = []

    def on_change(self, callback: Callback[T]) -> None:
        """Call `callback(old, new)` after each change.

        An object that was deleted and created again is reported as a deletion and a creation.
        """
        self._callbacks.append(callback)

    def index(self, name: str, values_of: Callable[[T], Iterable[str]]) -> None:
        """Add an index of this name over the values that `values_of` returns."""
        self._indexes[name] = _Index(values_of)

    def by_index(self, name: str, value: str) -> list[T]:
        """Return the objects with this value; raises KeyError if there is no such index."""
        return self._indexes[name].get(value)

    def get(self, key: Key) -> T | None:
        """Return the object, or None if it is not known."""
        return self._items.get(key)

    def items(self) -> list[T]:
        """Return all known objects."""
        return list(self._items.values())

    def version(self, scope: str) -> int:
        """Return the version up to which the scope is complete; 0 before the first list."""
        return self._versions[scope]

    def replace(
        self,
        scope: str,
        listed: Iterable[T],
        version: int,
        unreadable: Iterable[Key] = (),
        *,
        since: int | None = None,
    ) -> None:
        """Replace a scope's content by a list. Objects in `unreadable` keep their known state.

        `since` is the scope's version when the list was requested (default: its version now). If the list is
        older than `since`, the API server was restored from a backup: the list then replaces everything. If a
        watch has become newer than the list in the meantime, the list is ignored.
        """
        now = self._versions[scope]
        since = now if since is None else since
        if since <= version < now:
            return
        restored = version < since
        self._versions[scope] = version
        present = {key_of(item): item for item in listed}
        for key, known in self._in(scope):
            if key not in present and key not in unreadable and (restored or version_of(known) <= version):
                self._put(key, None)
        for key, item in present.items():
            if restored or self._is_newer(key, version_of(item)):
                self._put(key, item)

    def apply(self, scope: str, event: WatchEvent[T]) -> None:
        """Apply a watch event, unless the scope is already newer."""
        if event.version <= self._versions[scope]:
            return
        self._versions[scope] = event.version
        if event.type == "DELETED":
            if self._is_newer(event.key, event.version):
                self._put(event.key, None)
        elif event.item is not None and self._is_newer(event.key, event.version):
            self._put(event.key, event.item)

    def observe(self, item: T) -> None:
        """Store the answer of an own write, unless something newer is known."""
        key, version = key_of(item), version_of(item)
        scope = "" if "" in self._versions else key[0]
        if version > self._versions.get(scope, version) and self._is_newer(key, version):
            self._put(key, item)

    def _is_newer(self, key: Key, version: int) -> bool:
        known = self._items.get(key)
        return known is None or version_of(known) < version

    def _in(self, scope: str) -> list[tuple[Key, T]]:
        return [(key, item) for key, item in self._items.items() if not scope or key[0] == scope]

    def _put(self, key: Key, item: T | None) -> None:
        old = self._items.pop(key, None)
        if item is not None:
            self._items[key] = item
        for index in self._indexes.values():
            index.put(key, item)
        if old is not None and item is not None and metadata(old).uid != metadata(item).uid:
            self._notify(old, None)
            old = None
        if old is not None or item is not None:
            self._notify(old, item)

    def _notify(self, old: T | None, new: T | None) -> None:
        for callback in self._callbacks:
            try:
                callback(old, new)
            except Exception:
                _log.exception("a callback for a change failed")
