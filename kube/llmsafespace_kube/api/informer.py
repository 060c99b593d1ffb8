"""Follows the objects of a kind: a list, then a watch for ever, however often a watch ends."""

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

WATCH_SECONDS = 30  # then the API server ends a watch, so that silence beyond it means a lost connection
_FIRST_PAUSE = 0.1  # seconds
_LONGEST_PAUSE = 10.0
_STEADY = 1.0  # a watch that held so long was none that failed


class Informer(Generic[T]):
    """Knows the objects of a kind, and tells of changes. Never gives up; `silent_for` tells how well it does.

    Configure with `on_change` and `index`, then `start`.
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
        """Call `callback(old, new)` on the loop for each change: old None: new here, new None: deleted."""
        self._store.on_change(callback)

    def index(self, name: str, key: Callable[[T], Iterable[str]]) -> None:
        """Keep objects findable by the values that `key` gives."""
        self._store.index(name, key)

    def by_index(self, name: str, value: str) -> list[T]:
        """The objects that have this value in this index."""
        return self._store.by_index(name, value)

    def get(self, name: str, namespace: str | None = None) -> T | None:
        """The object, if it is known."""
        return self._store.get((namespace or "", name))

    def items(self) -> Iterable[T]:
        """All objects, as they are now."""
        return self._store.items()

    async def wait(self, name: str, namespace: str, reached: Callable[[T | None], bool]) -> T | None:
        """The object as soon as it is (or is gone) as `reached` wants it: set a limit where one is wanted."""
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
        """Take in the answer of an own write at once, unless something newer is known.

        Only for objects that the label selector selects: of others no watch would ever tell the end.
        """
        self._store.observe(item)

    async def start(self) -> None:
        """Return when everything has been listed, then follow.

        Until then it tries, and logs what is in the way: set a limit where one is wanted.
        """
        self._tasks = [asyncio.create_task(each.follow()) for each in self._followers]
        try:
            for follower in self._followers:
                await follower.listed.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Follow no more; what is known stays. A stopped informer is not started again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def refresh(self) -> None:
        """List everything anew, as a watch may be behind without anybody's knowing it. Raises KubeError."""
        await asyncio.gather(*(each.refresh() for each in self._followers))

    @property
    def silent_for(self) -> float:
        """Seconds since the watch that was silent longest was last heard; its limit is a little over 30."""
        return time.monotonic() - min(each.heard for each in self._followers)

    def _changed(self, old: T | None, new: T | None) -> None:
        changed = new if new is not None else old
        if changed is not None and self._waiting:
            for waiter in self._waiting.get(key_of(changed), ()):
                if not waiter.done():
                    waiter.set_result(None)


class _Follower(Generic[T]):
    """Keeps one scope of the store true."""

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
            if advanced or time.monotonic() - began >= _STEADY:
                failures = 0
            if error is not None or not advanced:
                failures += 1
            if error is not None and not isinstance(error, Gone):
                _log.warning("following %s in %r: %s", self._kind.plural, self._scope or "*", error)
            await asyncio.sleep(pause_after(failures, error))

    async def _round(self) -> tuple[bool, Exception | None]:
        """List if need be, then watch to the watch's end: whether it told anything, and what ended it."""
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
            # A server error may mean that the API server was set back to before the version.
            self._must_list = self._must_list or isinstance(error, Gone) or error.status >= 500
            return advanced, error
        except Exception as error:  # an answer that no API server gives: it must not end the following
            _log.exception("following %s in %r", self._kind.plural, self._scope or "*")
            self._must_list = True
            return advanced, error
        self.heard = time.monotonic()  # the API server ended the watch: it may have had nothing to tell
        return advanced, None

    async def refresh(self) -> None:
        """List, and take in what is there. A watch may go on meanwhile."""
        since = self._store.version(self._scope)
        found = await self._client.snapshot(self._kind, self._scope or None, **self._selectors)
        self._store.replace(self._scope, found.items, int(found.version), found.unreadable, since=since)
        self.heard = time.monotonic()
        self._must_list = False
        self.listed.set()


def pause_after(failures: int, error: Exception | None) -> float:
    """Seconds before the next try after so many failures in a row, spread so that not all try at once."""
    if not failures:
        return 0.0
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    asked = error.retry_after if isinstance(error, KubeError) and error.retry_after else 0.0
    return max(pause * random.uniform(0.5, 1.0), asked)  # noqa: S311
