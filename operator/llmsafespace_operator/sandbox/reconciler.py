"""Reconciles Sandboxes: observe, plan, apply. See plan.py for the life of a Sandbox."""

from __future__ import annotations

import asyncio

import msgspec
from prometheus_client import Counter

from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import SANDBOX, WARMPOD
from llmsafespace_kube.resources.kubernetes import Metadata, Pod
from llmsafespace_kube.resources.types import (
    RuntimeEnvironment,
    Sandbox,
    SandboxProfile,
    SandboxStatus,
    WarmPod,
    WarmPool,
)
from llmsafespace_operator.pods.room import Waiting
from llmsafespace_operator.sandbox.apply import Actions, Blocked, Refused
from llmsafespace_operator.sandbox.observe import Caches, Observer
from llmsafespace_operator.sandbox.plan import (
    Action,
    GiveWay,
    Observed,
    Plan,
    RemoveFinalizer,
    StartPod,
    Write,
    blocked,
    finished,
    is_starting,
    plan,
)
from llmsafespace_operator.sandbox.status import news
from llmsafespace_operator.sandbox.turns import Turns

STARTS = Counter("llmsafespace_sandbox_starts", "Started sandboxes, by kind of start (warm, cold).", ["kind"])
ENDS = Counter("llmsafespace_sandbox_ends", "Ended sandboxes, by end.", ["end"])

_WORKERS = 32  # many, because some wait for agents that are slow to bind
_RETRY = 3.0  # seconds between two tries while a sandbox is blocked


class SandboxReconciler:
    """Reconciles Sandboxes by its `controller`. Call `follow` once, and `begin` before leading."""

    def __init__(
        self,
        caches: Caches,
        observer: Observer,
        actions: Actions,
        events: Events,
        turns: Turns,
        waiting: Waiting,
    ) -> None:
        self._caches = caches
        self._observer = observer
        self._actions = actions
        self._events = events
        self._turns = turns
        self._waiting = waiting
        self._released: set[str] = set()  # uids of deleted Sandboxes that the cache may still show
        self.controller = Controller("sandbox", self.reconcile, workers=_WORKERS)

    def follow(self) -> None:
        """Register for changes. Call it before the informers start."""
        self._caches.sandboxes.on_change(self._sandbox_changed)
        self._caches.warm_pods.on_change(self._warm_pod_changed)
        self._caches.pods.on_change(self._pod_changed)
        self._caches.runtimes.on_change(self._environment_changed)
        self._caches.profiles.on_change(self._environment_changed)
        self._caches.warm_pools.on_change(self._pool_changed)

    def begin(self) -> None:
        """Forget turns and waiting sandboxes of an earlier time as leader; reconciling finds them again."""
        self._turns.clear()
        self._waiting.clear()

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one Sandbox; return the seconds until the next check. Raises KubeError."""
        namespace, name = key
        sandbox = self._caches.sandboxes.get(name, namespace)
        if sandbox is None or sandbox.metadata.uid in self._released:
            self._leave(key)
            self._waiting.discard(key)
            return None
        seen = await self._observer.observe(sandbox)
        found = self._in_turn(key, seen, plan(seen))
        if any(isinstance(action, GiveWay) for stage in found.stages for action in stage):
            self._waiting.add(key)
        elif is_starting(seen):
            self._waiting.scheduled(key)
        else:
            self._waiting.discard(key)
        try:
            await self._carry_out(seen, found)
        except Blocked as stop:
            if seen.pod is None:
                self._leave(key)  # no pod is starting, so that another cold start may begin
            await self._carry_out(seen, blocked(seen, stop.obstacle))
            return _RETRY
        except Refused as stop:
            await self._carry_out(seen, finished(seen, stop.end))
        return found.again

    async def _carry_out(self, seen: Observed, found: Plan) -> None:
        for stage in found.stages:
            results = await asyncio.gather(
                *(self._apply(seen, action) for action in stage), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    async def _apply(self, seen: Observed, action: Action) -> None:
        await self._actions.apply(seen, action)
        if isinstance(action, Write):
            self._emit(seen.sandbox, action.status)
        elif isinstance(action, RemoveFinalizer) and len(seen.sandbox.metadata.finalizers) == 1:
            meta = seen.sandbox.metadata
            if self._caches.sandboxes.get(meta.name, meta.namespace) is not None:
                self._released.add(meta.uid)

    def _emit(self, sandbox: Sandbox, now: SandboxStatus) -> None:
        before = sandbox.status
        if now.end and not before.end:
            ENDS.labels(now.end).inc()
            kind = "Warning" if now.phase == "Failed" else "Normal"
            self._events.emit(SANDBOX, sandbox.metadata, kind, "Ended", f"{now.end}: {now.message}")
        elif now.phase == "Running" and before.phase != "Running":
            STARTS.labels(now.start_kind).inc()
            if not names.made_by_gateway(sandbox.metadata.name):  # a gateway's users do not read events
                how = f"{now.start_kind} start in pod {now.pod_namespace}/{now.pod_name}"
                self._events.emit(SANDBOX, sandbox.metadata, "Normal", "Started", how)
        else:
            obstacle = news(before, now)
            if obstacle is not None:
                self._events.emit(SANDBOX, sandbox.metadata, "Warning", obstacle.reason, obstacle.message)

    def _in_turn(self, key: Key, seen: Observed, found: Plan) -> Plan:
        """Return the plan, or a plan to wait if it would start more cold starts than allowed."""
        if any(isinstance(action, StartPod) for stage in found.stages for action in stage):
            if not self._turns.take(key):
                return plan(msgspec.structs.replace(seen, turn=False))
        elif is_starting(seen):
            self._turns.hold(key)
        else:
            self._leave(key)
        return found

    def _leave(self, key: Key) -> None:
        for following in self._turns.leave(key):
            self.controller.enqueue(following)

    def _sandbox_changed(self, old: Sandbox | None, new: Sandbox | None) -> None:
        changed = new or old
        if changed is not None:
            self.controller.enqueue(key_of(changed))
        if new is None and old is not None:
            self._released.discard(old.metadata.uid)

    def _warm_pod_changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        changed = new or old
        if changed is not None and changed.spec.claim is not None:
            reference = changed.spec.claim.sandbox
            self.controller.enqueue((reference.namespace, reference.name))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        changed = new or old
        if changed is not None:
            for key in self._sandboxes_of(changed.metadata):
                self.controller.enqueue(key)

    def _sandboxes_of(self, pod: Metadata) -> list[Key]:
        found = []
        for owner in pod.owner_references:
            if owner.kind == SANDBOX.kind:
                found.append((pod.namespace, owner.name))
            elif owner.kind == WARMPOD.kind:
                warm_pod = self._caches.warm_pods.get(owner.name, pod.namespace)
                claim = warm_pod.spec.claim if warm_pod is not None else None
                if claim is not None:
                    found.append((claim.sandbox.namespace, claim.sandbox.name))
        return found

    def _pool_changed(self, old: WarmPool | None, new: WarmPool | None) -> None:
        # A pool's status changes often and never blocks a Sandbox.
        if old is None or new is None or old.spec != new.spec:
            self._environment_changed(old, new)

    def _environment_changed(
        self,
        old: RuntimeEnvironment | SandboxProfile | WarmPool | None,
        new: RuntimeEnvironment | SandboxProfile | WarmPool | None,
    ) -> None:
        # A Sandbox that could not start may be able to now.
        if new is not None:
            for sandbox in self._caches.sandboxes.items():
                if sandbox.status.phase == "Pending":
                    self.controller.enqueue(key_of(sandbox))
