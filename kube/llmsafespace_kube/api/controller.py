"""A controller calls a reconcile function for each key whose objects may have changed.

Informer callbacks, timers and failed reconciles put keys into the work queue (workqueue.py). Up to `workers`
tasks take keys from it. A reconcile reads the present state, not the event, so it does not matter how often
or in which order keys are added. Only one task at a time works on a key.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.errors import Conflict, KubeError
from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.api.workqueue import Backoff, WorkQueue

_log = logging.getLogger(__name__)

LIMIT = 120.0  # maximum seconds of one reconcile


class Controller:
    """A work queue and its workers.

    If `reconcile` raises, the key is tried again after a pause that grows with each failure. If it returns a
    number, the key is reconciled again after that many seconds. Keys that are added before `start` or after
    `stop` are dropped: after `start`, the caller must add all existing objects.
    """

    def __init__(
        self, name: str, reconcile: Callable[[Key], Awaitable[float | None]], *, workers: int = 8
    ) -> None:
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._queue = WorkQueue(name)
        self._backoff = Backoff()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = False
        self._retries = metrics.RETRIES.labels(name)
        self._duration = metrics.WORK_DURATION.labels(name)

    def enqueue(self, key: Key, *, priority: int = 0, after: float = 0.0) -> None:
        """Reconcile the key now, or after at most `after` seconds. Higher priorities go first."""
        if not self._started:
            return
        if after <= 0:
            self._queue.add(key, priority)
            self._start_workers()
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + after:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(after, self._due, key, priority)

    def start(self) -> None:
        """Accept keys from now on."""
        self._started = True

    async def stop(self) -> None:
        """Cancel the running reconciles and the timers, and wait until the reconciles have ended."""
        self._started = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._queue.clear()

    def _due(self, key: Key, priority: int) -> None:
        self._timers.pop(key, None)
        self.enqueue(key, priority=priority)

    def _start_workers(self) -> None:
        while self._started and len(self._tasks) < self._workers:
            key = self._queue.take()
            if key is None:
                return
            task = asyncio.create_task(self._work(key))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._finished, key))

    def _finished(self, key: Key, task: asyncio.Task[None]) -> None:
        # A callback and not a `finally` in the task: a task cancelled before its first step runs no code.
        self._tasks.discard(task)
        self._queue.done(key)
        self._start_workers()

    async def _work(self, key: Key) -> None:
        began = time.monotonic()
        again: float | None = None
        try:
            async with asyncio.timeout(LIMIT):
                again = await self._reconcile(key)
            self._backoff.succeeded(key)
        except Exception as error:
            again = self._failed(key, error)
        finally:
            self._duration.observe(time.monotonic() - began)
        if again is not None:
            self.enqueue(key, after=again)

    def _failed(self, key: Key, error: Exception) -> float:
        self._retries.inc()
        pause = self._backoff.failed(key)
        name = "/".join(part for part in key if part)
        if isinstance(error, Conflict):  # another writer was faster, which is normal
            _log.debug("%s %s: %s", self.name, name, error)
        elif isinstance(error, KubeError):
            _log.warning("%s %s failed, next try in %.1f s: %s", self.name, name, pause, error)
        else:
            _log.error("%s %s failed, next try in %.1f s", self.name, name, pause, exc_info=error)
        retry_after = error.retry_after if isinstance(error, KubeError) and error.retry_after else 0.0
        return max(pause, retry_after)
