"""An informer keeps a copy of all objects of a kind, by a list and then by one watch after another.

A watch ends after 30 seconds, and the next one starts at the store's version: nothing is missed. If that
version is too old (Gone), or the API server failed, the informer lists again first. Each namespace has its
own list and watch (a `_Follower`); all of them fill one store (store.py). Errors are logged and retried with
a growing pause, forever: readers see an older state, and `silent_for` says how old it can be.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Generic

from llmsafespace_kube.api.client import Gone, KubeClient, KubeError
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.api.store import Callback, Store
from llmsafespace_kube.resources.kinds import Kind, T

_log = logging.getLogger(__name__)

WATCH_SECONDS = 30  # the API server ends a watch after this time: longer silence means a lost connection
_FIRST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 10.0
_HEALTHY = 1.0  # seconds; a watch that lasted this long does not count as a failure


class Informer(Generic[T]):
    """The objects of a kind in some namespaces (None: all), and callbacks for their changes.

    Call `on_change` and `index` first, then `start`.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        namespaces: Sequence[str] | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        watch_seconds: int = WATCH_SECONDS,
    ) -> None:
        selectors = {"label_selector": label_selector}
        if field_selector:
            selectors["field_selector"] = field_selector
        scopes = [""] if namespaces is None else list(dict.fromkeys(namespaces))
        self._store: Store[T] = Store(scopes)
        self._followers = [
            _Follower(client, kind, self._store, scope, selectors, watch_seconds) for scope in scopes
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[Key, set[asyncio.Future[None]]] = {}
        self._store.on_change(self._changed)

    def on_change(self, callback: Callback[T]) -> None:
        """Call `callback(old, new)` on the event loop for each change.

        `old` is None for an object that was not known, `new` is None for a deleted one.
        """
        self._store.on_change(callback)

    def index(self, name: str, key: Callable[[T], Iterable[str]]) -> None:
        """Add an index of this name: `key` returns the values under which an object is found."""
        self._store.index(name, key)

    def by_index(self, name: str, value: str) -> list[T]:
        """Return the objects that have this value in this index."""
        return self._store.by_index(name, value)

    def get(self, name: str, namespace: str | None = None) -> T | None:
        """Return the object, or None if it is not known."""
        return self._store.get((namespace or "", name))

    def items(self) -> Iterable[T]:
        """Return all known objects."""
        return self._store.items()

    async def wait(self, name: str, namespace: str, reached: Callable[[T | None], bool]) -> T | None:
        """Wait until `reached(object)` is true and return the object; None stands for a missing object.

        There is no time limit: use asyncio.timeout.
        """
        key = namespace, name
        while not reached(found := self._store.get(key)):
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(key, set())
            waiting.add(changed)
            try:
                await changed
            finally:
                waiting.discard(changed)
                if not waiting and self._waiting.get(key) is waiting:
                    del self._waiting[key]
        return found

    def observe(self, item: T) -> None:
        """Store the answer of one of our own writes at once, unless a newer version is known.

        Only for objects that the selectors match: the watch would never report the end of another object.
        """
        self._store.observe(item)

    async def start(self) -> None:
        """Return when everything has been listed, and then watch in the background.

        Retries without a time limit and logs each error: use asyncio.timeout.
        """
        self._tasks = [asyncio.create_task(each.follow()) for each in self._followers]
        try:
            for follower in self._followers:
                await follower.listed.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop watching. The known objects stay. A stopped informer cannot be started again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """List everything again, in case that a watch is behind. Raises KubeError."""
        await asyncio.gather(*(each.refresh() for each in self._followers))

    @property
    def silent_for(self) -> float:
        """Seconds since anything arrived on the most silent watch; a healthy one stays near 30 at most."""
        return time.monotonic() - min(each.heard for each in self._followers)

    def _changed(self, old: T | None, new: T | None) -> None:
        changed = new if new is not None else old
        if changed is not None and self._waiting:
            for waiter in self._waiting.get(key_of(changed), ()):
                if not waiter.done():
                    waiter.set_result(None)


class _Follower(Generic[T]):
    """Keeps one scope of the store up to date."""

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        store: Store[T],
        scope: str,
        selectors: dict[str, str],
        watch_seconds: int,
    ) -> None:
        self.listed = asyncio.Event()
        self.heard = time.monotonic()
        self._client = client
        self._kind = kind
        self._store = store
        self._scope = scope
        self._selectors = selectors
        self._watch_seconds = watch_seconds
        self._must_list = True

    async def follow(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            advanced, error = await self._round()
            if advanced or time.monotonic() - began >= _HEALTHY:
                failures = 0
            if error is not None or not advanced:
                failures += 1
            if error is not None and not isinstance(error, Gone):
                _log.warning("watching %s in %r: %s", self._kind.plural, self._scope or "*", error)
            await asyncio.sleep(pause_after(failures, error))

    async def _round(self) -> tuple[bool, Exception | None]:
        """List if necessary, then watch until the watch ends.

        Returns whether an event arrived, and the error that ended the watch, if any.
        """
        advanced = False
        try:
            if self._must_list:
                await self.refresh()
            async with aclosing(
                self._client.watch(
                    self._kind,
                    self._scope or None,
                    resource_version=str(self._store.version(self._scope)),
                    seconds=self._watch_seconds,
                    **self._selectors,
                )
            ) as events:
                async for event in events:
                    self.heard = time.monotonic()
                    advanced = True
                    self._store.apply(self._scope, event)
        except KubeError as error:
            # A server error may mean that the API server was restored from a backup, older than our version.
            self._must_list = self._must_list or isinstance(error, Gone) or error.status >= 500
            return advanced, error
        except Exception as error:  # a malformed answer must not end the loop
            _log.exception("watching %s in %r", self._kind.plural, self._scope or "*")
            self._must_list = True
            return advanced, error
        self.heard = time.monotonic()  # the API server ended the watch as planned, perhaps without an event
        return advanced, None

    async def refresh(self) -> None:
        """List and replace the scope's content. A watch may run at the same time."""
        since = self._store.version(self._scope)
        found = await self._client.snapshot(self._kind, self._scope or None, **self._selectors)
        self._store.replace(self._scope, found.items, int(found.version), found.unreadable, since=since)
        self.heard = time.monotonic()
        self._must_list = False
        self.listed.set()


def pause_after(failures: int, error: Exception | None) -> float:
    """Seconds to wait after `failures` failures in a row; randomized, to spread the clients' retries."""
    if not failures:
        return 0.0
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    retry_after = error.retry_after if isinstance(error, KubeError) and error.retry_after else 0.0
    return max(pause * random.uniform(0.5, 1.0), retry_after)  # noqa: S311
