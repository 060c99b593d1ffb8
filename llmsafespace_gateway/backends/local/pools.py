"""Warm pools at work: they start sandboxes ahead and hand them out.

Each pool is filled by itself. One that has not yet started a sandbox, or has just failed to, tries one at a
time and waits longer after each failure; others hear nothing of that (see starts.py for what they share).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from llmsafespace_gateway.backends.base import Condition, SandboxSpec, WarmPoolSpec, WarmPoolStatus
from llmsafespace_gateway.backends.local import pool as planning
from llmsafespace_gateway.backends.local.plans import Recipe
from llmsafespace_gateway.backends.local.registry import Entry
from llmsafespace_gateway.backends.local.starts import Starts
from llmsafespace_gateway.errors import ApiError

log = logging.getLogger("llmsafespace.pools")

REFILL_DELAY = 0.2  # seconds; a replacement must not take the processor from the first result


class Pool:
    """One pool's state."""

    def __init__(self, spec: WarmPoolSpec, recipe: Recipe) -> None:
        self.spec = spec
        self.recipe = recipe
        self.digest = recipe.digest
        self.ready: dict[str, Entry] = {}
        self.starting: set[asyncio.Task[None]] = set()
        self.failures = 0
        self.proven = False  # its last start went well
        self.retry_at = 0.0
        self.surplus_since: float | None = None
        self.last_scale_time: float | None = None
        self.condition = Condition(type="Ready", status="False", reason="Starting")
        self.wake = asyncio.Event()
        self.keeping: asyncio.Task[None] | None = None

    def say(self, status: str, reason: str, message: str = "") -> None:
        """Change the condition; its time changes with its status only."""
        old = self.condition
        changed = time.time() if old.status != status or not old.last_transition_time else None
        self.condition = Condition(
            type="Ready",
            status=status,
            reason=reason,
            message=message,
            last_transition_time=changed or old.last_transition_time,
        )


class Taken(NamedTuple):
    """What a request got from the pools: a sandbox, or the reason why none; and the pool that it is of."""

    entry: Entry | None
    reason: str
    pool: WarmPoolSpec | None = None


class Pools:
    """All warm pools, by their keys. `start(recipe, key)` starts one sandbox and waits until it is ready."""

    def __init__(
        self,
        start: Callable[[Recipe, str], Awaitable[tuple[Entry, list[str]]]],
        end: Callable[[Entry], Awaitable[None]],
        assigned: Callable[[str], int],
        grow: Callable[[WarmPoolSpec, int], int],
        starts: Starts,
    ) -> None:
        self._start = start
        self._end = end
        self._assigned = assigned
        self._grow = grow
        self._pools: dict[str, Pool] = {}
        self._starts = starts
        self._ending: set[asyncio.Task[None]] = set()

    def apply(self, spec: WarmPoolSpec, recipe: Recipe) -> None:
        """Create or change a pool."""
        pool = self._pools.get(spec.key)
        if pool is None:
            pool = self._pools[spec.key] = Pool(spec, recipe)
            pool.keeping = asyncio.create_task(self._keep(pool), name=f"pool {spec.name}")
            return
        pool.spec, pool.recipe, pool.digest = spec, recipe, recipe.digest
        pool.failures, pool.retry_at, pool.proven = 0, 0.0, False
        pool.wake.set()

    async def delete(self, key: str) -> None:
        """Remove a pool and end what nobody claimed; nothing when there is none."""
        pool = self._pools.pop(key, None)
        if pool is None:
            return
        tasks = [task for task in (pool.keeping, *pool.starting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(entry) for entry in list(pool.ready.values())))

    async def stop(self) -> None:
        """Remove all pools."""
        await asyncio.gather(*(self.delete(key) for key in list(self._pools)))
        await asyncio.gather(*self._ending, return_exceptions=True)

    @property
    def specs(self) -> list[WarmPoolSpec]:
        """What every pool should be."""
        return [pool.spec for pool in self._pools.values()]

    def take(self, spec: SandboxSpec, runtime: str) -> Taken:
        """A warm sandbox that is nobody else's from now on; or why there is none.

        Raises ApiError when the request names a pool that is not there, or cannot serve it.
        """
        if spec.warm_pool is not None:
            return self._take_named(spec, runtime)
        misfits = {
            key: planning.misfit(spec, runtime, pool.spec, pool.recipe.runtime.id)
            for key, pool in self._pools.items()
        }
        reason = planning.cold_reason(spec, list(misfits.values()))
        if reason is not None:
            return Taken(None, reason)
        fitting = [self._pools[key] for key, misfit in misfits.items() if misfit is None]
        fitting.sort(
            key=lambda pool: (
                pool.spec.tenant != spec.tenant,
                pool.spec.resources.cpu,
                pool.spec.resources.memory,
            )
        )
        for pool in fitting:
            entry = self._one_of(pool)
            if entry is not None:
                return Taken(entry, "", pool.spec)
        return Taken(None, f"the warm pool {fitting[0].spec.name} was empty")

    def _take_named(self, spec: SandboxSpec, runtime: str) -> Taken:
        found = planning.named(spec, self.specs)
        pool = self._pools[found.key]
        planning.check_named(spec, runtime, found, pool.recipe.runtime.id)
        reason = planning.early_reason(spec)
        entry = self._one_of(pool) if reason is None else None
        return Taken(entry, "" if entry else reason or f"the warm pool {found.name} was empty", found)

    def _one_of(self, pool: Pool) -> Entry | None:
        for name, entry in list(pool.ready.items()):
            if entry.state.recipe == pool.digest:
                del pool.ready[name]
                asyncio.get_running_loop().call_later(REFILL_DELAY, pool.wake.set)
                return entry
        return None

    def ended(self, entry: Entry) -> None:
        """A sandbox is no more."""
        pool = self._pools.get(entry.state.pool or "")
        if pool is not None:
            pool.ready.pop(entry.state.name, None)
            pool.wake.set()

    def status(self, spec: WarmPoolSpec) -> WarmPoolStatus:
        """How a pool stands. Raises ApiError(not_found)."""
        pool = self._pools.get(spec.key)
        if pool is None:
            raise ApiError("not_found", f"there is no warm pool {spec.name}")
        return WarmPoolStatus(
            available=len(pool.ready),
            assigned=self._assigned(spec.key),
            pending=len(pool.starting),
            last_scale_time=pool.last_scale_time,
            conditions=(pool.condition,),
        )

    # -- keeping one full --------------------------------------------------------------------------

    async def _keep(self, pool: Pool) -> None:
        while True:
            pool.wake.clear()
            actions = planning.plan(self._observe(pool))
            pool.surplus_since = actions.surplus_since
            for name in actions.end:
                self._end_later(pool.ready.pop(name))
            at_once = actions.start if pool.proven else min(actions.start, int(not pool.starting))
            for _ in range(at_once):
                self._start_later(pool)
            if actions.start or actions.end:
                pool.last_scale_time = time.time()
            await self._woken(pool, actions.look_again_at)

    def _observe(self, pool: Pool) -> planning.Observed:
        now = time.time()
        warm = tuple(
            planning.Warm(name, now - entry.state.started_at, entry.state.recipe == pool.digest)
            for name, entry in pool.ready.items()
        )
        assigned = self._assigned(pool.spec.key)
        return planning.Observed(
            spec=pool.spec,
            warm=warm,
            starting=len(pool.starting),
            assigned=assigned,
            room=self._grow(pool.spec, planning.wanted(pool.spec, assigned)),
            now=now,
            surplus_since=pool.surplus_since,
            retry_at=pool.retry_at,
        )

    async def _woken(self, pool: Pool, until: float | None) -> None:
        delay = None if until is None else max(0.01, until - time.time())
        # Not wait_for: of Python 3.11 it swallows a cancellation that comes together with the wake.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await pool.wake.wait()

    def _end_later(self, entry: Entry) -> None:
        async def end() -> None:
            await self._end(entry)

        task = asyncio.create_task(end(), name=f"end of {entry.state.name}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _start_later(self, pool: Pool) -> None:
        task = asyncio.create_task(self._start_one(pool), name=f"start for pool {pool.spec.name}")
        pool.starting.add(task)

        def started(done: asyncio.Task[None]) -> None:
            pool.starting.discard(done)
            pool.wake.set()

        task.add_done_callback(started)

    async def _start_one(self, pool: Pool) -> None:
        async with self._starts.turn(pool=True):
            try:
                entry, problems = await self._start(pool.recipe, pool.spec.key)
            except (ApiError, OSError) as error:
                log.warning("pool %s: %s", pool.spec.name, error)
                self._failed(pool, str(error))
                return
            except Exception as error:  # it must wait before it tries again, whatever went wrong
                log.exception("pool %s: a start failed", pool.spec.name)
                self._failed(pool, f"an unexpected error, see the gateway's log: {error}")
                return
        pool.failures, pool.retry_at, pool.proven = 0, 0.0, True
        pool.ready[entry.state.name] = entry
        if problems:
            pool.say("True", "PreloadFailed", "; ".join(problems)[:2000])
        else:
            pool.say("True", "Warm")

    def _failed(self, pool: Pool, message: str) -> None:
        pool.failures += 1
        pool.proven = False
        pool.retry_at = time.time() + planning.backoff(pool.failures)
        pool.say("False", "StartFailed", message)
