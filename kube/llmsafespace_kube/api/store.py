"""What an informer knows: the objects, their indexes, and up to which version that is all there is."""

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
    """Objects by values that a function finds in them."""

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
    """The objects of some scopes: namespaces, or the one scope "" for the whole cluster.

    Each scope has a version: whatever happened up to it is in here. Own writes are observed ahead of it, and
    neither an older event nor an older list takes them back. An observed object that is not newer than its
    scope is old news: it has been changed or deleted since. So deleted objects need not be remembered.
    """

    def __init__(self, scopes: Iterable[str]) -> None:
        self._items: dict[Key, T] = {}
        self._versions = dict.fromkeys(scopes, 0)
        self._indexes: dict[str, _Index[T]] = {}
        self._callbacks: list[Callback[T]] = []

    def on_change(self, callback: Callback[T]) -> None:
        """Call `callback(old, new)` after each change; a replaced object is a deletion and a creation."""
        self._callbacks.append(callback)

    def index(self, name: str, values_of: Callable[[T], Iterable[str]]) -> None:
        """Keep objects findable by these values."""
        self._indexes[name] = _Index(values_of)

    def by_index(self, name: str, value: str) -> list[T]:
        """The objects with this value; raises KeyError for an index that there is not."""
        return self._indexes[name].get(value)

    def get(self, key: Key) -> T | None:
        """The object, if it is known."""
        return self._items.get(key)

    def items(self) -> list[T]:
        """All objects as they are now."""
        return list(self._items.values())

    def version(self, scope: str) -> int:
        """Up to which version everything is known; 0: nothing yet."""
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
        """Take in a whole list; what is in `unreadable` stays as it was known.

        `since` is the scope's version when the list was asked for, by default what it is now. A list is the
        API server's present state, so one below that means that its history was set back (a restored
        backup): then the list counts, and nothing that was known. One that a watch has overtaken meanwhile
        tells nothing new.
        """
        now = self._versions[scope]
        since = now if since is None else since
        if since <= version < now:
            return
        set_back = version < since
        self._versions[scope] = version
        present = {key_of(item): item for item in listed}
        for key, known in self._in(scope):
            if key not in present and key not in unreadable and (set_back or version_of(known) <= version):
                self._put(key, None)
        for key, item in present.items():
            if set_back or self._is_news(key, version_of(item)):
                self._put(key, item)

    def apply(self, scope: str, event: WatchEvent[T]) -> None:
        """Take in an event of a watch, unless a list has already told what came of it."""
        if event.version <= self._versions[scope]:
            return
        self._versions[scope] = event.version
        if event.type == "DELETED":
            if self._is_news(event.key, event.version):
                self._put(event.key, None)
        elif event.item is not None and self._is_news(event.key, event.version):
            self._put(event.key, event.item)

    def observe(self, item: T) -> None:
        """Take in the answer of an own write, unless something newer is known."""
        key, version = key_of(item), version_of(item)
        scope = "" if "" in self._versions else key[0]
        if version > self._versions.get(scope, version) and self._is_news(key, version):
            self._put(key, item)

    def _is_news(self, key: Key, version: int) -> bool:
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
                _log.exception("a change was not taken in")
