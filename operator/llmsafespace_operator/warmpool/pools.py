"""Reconciles WarmPools: the number of WarmPods (plan.py) and the status. pods.py creates their pods."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import WARMPOOL
from llmsafespace_kube.resources.types import (
    RuntimeEnvironment,
    SandboxProfile,
    WarmPod,
    WarmPool,
    WarmPoolStatus,
)
from llmsafespace_operator.pods.ends import is_unschedulable, trouble
from llmsafespace_operator.pods.made_as import made_as
from llmsafespace_operator.pods.room import Waiting
from llmsafespace_operator.warmpool import makes, metrics
from llmsafespace_operator.warmpool.caches import Caches, pool_of
from llmsafespace_operator.warmpool.counts import count
from llmsafespace_operator.warmpool.members import Members
from llmsafespace_operator.warmpool.plan import Actions, Observed, Unclaimed, plan
from llmsafespace_operator.warmpool.records import Record, Records
from llmsafespace_operator.warmpool.status import Known, body, status, urgent
from llmsafespace_operator.warmpool.steps import age

_SETTLE = 0.1  # seconds after a change; collects changes, and leaves the CPU to a claim before the refill
_PERIOD = 1.0  # seconds between two rounds for a pool under load, or with writes that the cache does not show
_REPORT = 5.0  # minimum seconds between two writes of a status

# Condition reasons that are also emitted as events, because somebody must act.
_EVENT_REASONS = {names.UNSCHEDULABLE, "RuntimeUnavailable", "SmallerThanDefault", "PreloadFailed"}


class WarmPoolReconciler:
    """Reconciles WarmPools by its `controller`. Call `follow` once."""

    def __init__(
        self, client: KubeClient, caches: Caches, events: Events, records: Records, waiting: Waiting
    ) -> None:
        self._client = client
        self._caches = caches
        self._events = events
        self._records = records
        self._waiting = waiting
        self._members = Members(client, caches.warm_pods)
        self.controller = Controller("warmpool", self.reconcile)

    def follow(self) -> None:
        """Register for changes. Call it before the informers start."""
        self._records.on_news = self._soon
        self._waiting.on_over = self._all_soon
        self._caches.warm_pools.on_change(self._pool_changed)
        self._caches.warm_pods.on_change(self._warm_pod_changed)
        self._caches.runtimes.on_change(self._environment_changed)
        self._caches.profiles.on_change(self._environment_changed)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one WarmPool; return the seconds until the next check. Raises KubeError."""
        namespace, name = key
        pool = self._caches.warm_pools.get(name, namespace)
        if pool is None:
            self._records.forget(key)
            self._members.forget(key)
            return None
        if not self._members.settled(key):
            return _PERIOD
        if pool.metadata.deletion_timestamp is not None:
            return await self._dissolve(pool)
        if names.WARMPOOL_FINALIZER not in pool.metadata.finalizers:
            pool = await self._set_finalizer(pool, present=True)
        return await self._keep(pool, self._records.of(key))

    async def _keep(self, pool: WarmPool, record: Record) -> float | None:
        make = makes.make_of(pool, self._caches.catalogue)
        if isinstance(make, makes.Make) and make.revision != record.revision:
            record.changed(make.revision)
        crowded = self._crowded(key_of(pool))
        held = self._waiting.held()
        may_create = isinstance(make, makes.Make) and not crowded and not held
        actions = plan(self._observed(pool, record, may_create=may_create))
        if record.desired not in (None, actions.desired):
            record.scaled = True
            message = f"from {record.desired} to {actions.desired} unclaimed warm pods"
            self._events.emit(WARMPOOL, pool.metadata, "Normal", "Scaled", message)
        record.wishes, record.desired = actions.wishes, actions.desired
        # Deletions come first: the pool never exceeds maxSize. If one fails, the next round counts again.
        if await self._members.delete(key_of(pool), actions.delete):
            await self._members.create(pool, actions.create, record)
        known = Known(
            counts=count(self._caches.members(key_of(pool))),
            desired=actions.desired,
            limited=actions.limited,
            unavailable=make if isinstance(make, str) else "",
            trouble=record.trouble(),
            crowded=crowded,
            yielding=held > 0,
            problems=tuple(record.problems or ()),
        )
        report_in = await self._report(pool, record, known)
        return _again(record, actions, report_in, held)

    def _crowded(self, pool: Key) -> str:
        """Return the scheduler's message if one of the pool's pods fits on no node; otherwise ""."""
        for one in self._caches.members(pool):
            pod = self._caches.pods.get(one.metadata.name, one.metadata.namespace)
            if pod is not None and one.spec.claim is None and is_unschedulable(pod):
                return trouble(pod)
        return ""

    def _observed(self, pool: WarmPool, record: Record, *, may_create: bool) -> Observed:
        members = self._caches.members(key_of(pool))
        now = datetime.now(UTC)
        free = [one for one in members if one.spec.claim is None]
        return Observed(
            spec=pool.spec,
            unclaimed=[self._unclaimed(one, record.revision, now) for one in free],
            claimed=len(members) - len(free),
            rate=record.rate(),
            lead=record.lead,
            now=time.monotonic(),
            wishes=record.wishes,
            retry_at=record.retry_at,
            may_create=may_create,
        )

    def _unclaimed(self, warm_pod: WarmPod, revision: str, now: datetime) -> Unclaimed:
        meta = warm_pod.metadata
        made = warm_pod.status.revision
        if not made:
            pod = self._caches.pods.get(meta.name, meta.namespace)
            made = made_as(pod).revision if pod is not None else ""
        return Unclaimed(
            meta.name,
            age(warm_pod, now),
            ready=warm_pod.status.phase == "Ready",
            current=made in ("", revision) or not revision,
            ours=names.POOL in meta.labels,
        )

    async def _dissolve(self, pool: WarmPool) -> float | None:
        """Delete the unclaimed WarmPods of a pool that is being deleted. Claimed ones stay."""
        if names.WARMPOOL_FINALIZER not in pool.metadata.finalizers:
            return None
        members = self._caches.members(key_of(pool))
        free = [one.metadata.name for one in members if one.spec.claim is None]
        if free:
            await self._members.delete(key_of(pool), free)
            return _SETTLE
        await self._set_finalizer(pool, present=False)
        return None

    async def _set_finalizer(self, pool: WarmPool, *, present: bool) -> WarmPool:
        meta = pool.metadata
        others = [one for one in meta.finalizers if one != names.WARMPOOL_FINALIZER]
        wanted = [*others, names.WARMPOOL_FINALIZER] if present else others
        patch = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": wanted}}
        changed = await self._client.patch(WARMPOOL, meta.name, patch, meta.namespace)
        if present:
            self._caches.warm_pools.observe(changed)
        return changed

    async def _report(self, pool: WarmPool, record: Record, known: Known) -> float | None:
        """Write the status if it has changed, or return the seconds until it may be written."""
        metrics.report(key_of(pool), known.counts, known.desired, record.rate())
        wanted = status(pool, known, record.scaled, datetime.now(UTC))
        if wanted == pool.status:
            return None
        wait = record.reported_at + _REPORT - time.monotonic()
        if wait > 0 and not urgent(pool.status, wanted):
            return wait
        self._emit(pool, wanted)
        meta = pool.metadata
        patch = {"metadata": {"uid": meta.uid}, "status": body(wanted)}
        self._caches.warm_pools.observe(
            await self._client.patch(WARMPOOL, meta.name, patch, meta.namespace, subresource="status")
        )
        record.reported_at, record.scaled = time.monotonic(), False
        return None

    def _emit(self, pool: WarmPool, wanted: WarmPoolStatus) -> None:
        """Emit an event for each condition whose new reason requires somebody to act."""
        before = {one.type: one.reason for one in pool.status.conditions}
        for one in wanted.conditions:
            if one.reason in _EVENT_REASONS and before.get(one.type) != one.reason:
                self._events.emit(WARMPOOL, pool.metadata, "Warning", one.reason, one.message)

    def _soon(self, pool: Key) -> None:
        self.controller.enqueue(pool, after=_SETTLE)

    def _all_soon(self) -> None:
        for pool in self._caches.warm_pools.items():
            self._soon(key_of(pool))

    def _pool_changed(self, old: WarmPool | None, new: WarmPool | None) -> None:
        changed = new or old
        if changed is not None:
            self.controller.enqueue(key_of(changed))

    def _warm_pod_changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        changed = new or old
        if changed is None:
            return
        pool = pool_of(changed)
        if old is not None and new is not None and old.spec.claim is None and new.spec.claim is not None:
            self._records.of(pool).claimed()
        self._soon(pool)

    def _environment_changed(
        self, old: RuntimeEnvironment | SandboxProfile | None, new: RuntimeEnvironment | SandboxProfile | None
    ) -> None:
        self._all_soon()


def _again(record: Record, actions: Actions, report_in: float | None, held: float) -> float | None:
    """Return the seconds until the next check that no change would trigger; None if there is none."""
    now = time.monotonic()
    delays = [] if report_in is None else [report_in]
    if held:
        delays.append(held)
    if record.rate():
        delays.append(_PERIOD)
    if record.retry_at > now:
        delays.append(record.retry_at - now)
    if actions.look_at is not None:
        delays.append(actions.look_at - now)
    return max(0.0, min(delays)) if delays else None
