"""The event loop behind the synchronous classes: one thread per process, started on first use."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_CANCELLED_WITHIN = 3.0  # seconds for a call that Ctrl-C cancels to put things in order


class Portal:
    """A private event loop on a daemon thread, and the way into it from ordinary code."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="llmsafespace", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. An interrupt of the calling thread cancels the coroutine."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a synchronous sandbox cannot be used on its own event loop's thread")
        over = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_told_of(coroutine, over), self.loop)
        try:
            return future.result()
        except Exception:
            future.cancel()
            raise
        except BaseException:  # Ctrl-C: the process may end next, and what runs in the sandbox should end too
            future.cancel()
            over.wait(_CANCELLED_WITHIN)
            raise

    def call_soon(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run the coroutine without waiting for it (from finalizers, which must not block)."""
        if self.loop.is_closed():
            coroutine.close()
        else:
            asyncio.run_coroutine_threadsafe(coroutine, self.loop)


class SyncIterator(Generic[T]):
    """An ordinary iterator over an asynchronous one that lives on the portal. Close it to end early."""

    def __init__(self, portal: Portal, source: AsyncIterator[T]) -> None:
        self._portal = portal
        self._source = source
        self._open = True

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._open:
            raise StopIteration
        try:
            return self._portal.run(_next(self._source))
        except StopAsyncIteration:
            self._open = False
            raise StopIteration from None

    def close(self) -> None:
        """End early, and let go of the source."""
        if self._open:
            self._open = False
            self._portal.run(_close(self._source))

    def __enter__(self) -> SyncIterator[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._open and self._portal.pid == os.getpid():
            self._open = False
            self._portal.call_soon(_close(self._source))


async def _told_of(coroutine: Coroutine[Any, Any, T], over: threading.Event) -> T:
    try:
        return await coroutine
    finally:
        over.set()


async def _next(source: AsyncIterator[T]) -> T:
    return await source.__anext__()


async def _close(source: AsyncIterator[Any]) -> None:
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


_lock = threading.Lock()
_portal: Portal | None = None


def _forked() -> None:
    """A forked process has a lock of its own: the thread that held the old one may not be there."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def portal() -> Portal:
    """This process's portal; a forked child gets one of its own."""
    global _portal
    with _lock:
        if _portal is None or _portal.pid != os.getpid():
            _portal = Portal()
        return _portal
