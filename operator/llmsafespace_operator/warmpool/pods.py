"""Reconciles WarmPods: creates the pod, sets the status when it is ready, and deletes WarmPods that failed.

steps.py decides the next step of an unclaimed WarmPod. A claimed WarmPod belongs to its Sandbox's reconciler,
unless that Sandbox does not exist.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.errors import Forbidden, Invalid, NotFound
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.claims import tokens
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import POD, SANDBOX, WARMPOD, WARMPOOL
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import Sandbox, WarmPod, WarmPodClaim, WarmPool
from llmsafespace_operator.pods.ends import is_ready, trouble
from llmsafespace_operator.pods.made_as import made_as
from llmsafespace_operator.pods.start import NameTaken, owned, start
from llmsafespace_operator.warmpool import makes, metrics
from llmsafespace_operator.warmpool.caches import Caches, pool_of
from llmsafespace_operator.warmpool.problems import problems_of
from llmsafespace_operator.warmpool.records import Records
from llmsafespace_operator.warmpool.steps import Announce, Make, Remove, Step, Wait, next_step
from llmsafespace_protocol.proof import ProofError

_log = logging.getLogger(__name__)

_RETRY = 2.0  # seconds between two tries while a step is blocked


class WarmPodReconciler:
    """Reconciles WarmPods by its `controller`, and records starts and failures in `records`.

    Call `follow` once.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        events: Events,
        records: Records,
        settings: Settings,
        key: bytes,
    ) -> None:
        self._client = client
        self._caches = caches
        self._events = events
        self._records = records
        self._settings = settings
        self._key = key
        self.controller = Controller("warmpod", self.reconcile, workers=16)

    def follow(self) -> None:
        """Register for changes. Call it before the informers start."""
        self._caches.warm_pods.on_change(self._warm_pod_changed)
        self._caches.pods.on_change(self._pod_changed)
        self._caches.warm_pools.on_change(self._pool_changed)
        self._caches.sandboxes.on_change(self._sandbox_changed)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one WarmPod; return the seconds until the next check. Raises KubeError."""
        namespace, name = key
        warm_pod = self._caches.warm_pods.get(name, namespace)
        if warm_pod is None or warm_pod.metadata.deletion_timestamp is not None:
            return None
        if warm_pod.spec.claim is not None:
            return await self._claimed(warm_pod, warm_pod.spec.claim)
        pod = await self._pod(warm_pod)
        pool = self._caches.pool(warm_pod)
        if pod is not None:
            self._note(warm_pod, trouble(pod))
        return await self._carry_out(next_step(warm_pod, pod, pool, datetime.now(UTC)), warm_pod, pod, pool)

    async def _carry_out(
        self, step: Step, warm_pod: WarmPod, pod: Pod | None, pool: WarmPool | None
    ) -> float | None:
        match step:
            case Make():
                return await self._make(warm_pod, pool)
            case Announce() if pod is not None:
                await self._announce(warm_pod, pod)
            case Remove(message=message, failed=failed):
                await self._remove(warm_pod, pool, message, failed=failed)
            case Wait(seconds=seconds):
                return seconds
        return None

    async def _make(self, warm_pod: WarmPod, pool: WarmPool | None) -> float | None:
        make = makes.make_of(pool, self._caches.catalogue) if pool is not None else "there is no such pool"
        if pool is None or isinstance(make, str):
            return _RETRY  # the pool's status shows the reason
        recipe = makes.recipe(warm_pod, pool, make)
        token = tokens.agent_token(self._key, warm_pod.metadata.uid)
        try:
            pod = await start(self._client, recipe, token, self._settings)
        except NameTaken as error:
            self._note(warm_pod, str(error))
            return _RETRY
        except (Forbidden, Invalid, NotFound) as error:  # a quota, a policy, a missing RuntimeClass
            self._note(warm_pod, error.message)
            raise
        self._caches.pods.observe(pod)
        return None

    async def _announce(self, warm_pod: WarmPod, pod: Pod) -> None:
        """Set the status Ready if the WarmPod is unchanged: a claimed one must not become Ready."""
        meta = warm_pod.metadata
        status = msgspec.to_builtins(makes.ready(pod))
        body = {"metadata": {"resourceVersion": meta.resource_version}, "status": status}
        self._caches.warm_pods.observe(
            await self._client.patch(WARMPOD, meta.name, body, meta.namespace, subresource="status")
        )
        namespace, name = pool_of(warm_pod)
        took = self._records.of((namespace, name)).ready(meta.name)
        if took is not None:
            metrics.LEAD.labels(name, namespace).observe(took)
        await self._ask_for_problems(pod, (namespace, name), meta.uid)

    async def _ask_for_problems(self, pod: Pod, pool: Key, owner: str) -> None:
        """Read preload problems from the agent, once for each make of a pool."""
        record, found = self._records.of(pool), self._caches.warm_pools.get(pool[1], pool[0])
        asks = found is not None and (found.spec.preload_packages or found.spec.preload_scripts)
        if not asks or record.problems is not None or made_as(pod).revision != record.revision:
            return
        try:
            problems = await problems_of(pod.status.pod_ip, tokens.agent_token(self._key, owner))
        except (ProofError, OSError) as error:
            _log.info("cannot read preload problems from the agent of %s: %s", pod.metadata.name, error)
        else:
            self._records.note_problems(pool, problems)

    async def _remove(self, warm_pod: WarmPod, pool: WarmPool | None, message: str, *, failed: bool) -> None:
        """Delete the WarmPod in the state in which it was unclaimed; raises Conflict if it has changed."""
        meta = warm_pod.metadata
        deleted = await self._client.delete(
            WARMPOD, meta.name, meta.namespace, uid=meta.uid, resource_version=meta.resource_version
        )
        if not deleted:
            return
        reason = "StartFailed" if failed else "WarmPodLost"
        if failed and pool is not None:
            namespace, name = key_of(pool)
            self._records.of(key_of(pool)).failed(message)
            metrics.FAILURES.labels(name, namespace).inc()
        if pool is not None:
            self._events.emit(WARMPOOL, pool.metadata, "Warning", reason, f"{meta.name}: {message}")
        else:
            self._events.emit(WARMPOD, meta, "Warning", reason, message)

    async def _claimed(self, warm_pod: WarmPod, claim: WarmPodClaim) -> float | None:
        """Delete a claimed WarmPod without a Sandbox: its gateway ended between claim and creation."""
        self._note(warm_pod, "")
        where = claim.sandbox
        if _is_claimant(self._caches.sandboxes.get(where.name, where.namespace), claim):
            return None
        grace = self._settings.claim_grace
        left = min(grace, grace - (datetime.now(UTC) - claim.time).total_seconds())
        if left > 0:
            return left
        try:
            sandbox = await self._client.get(SANDBOX, where.name, where.namespace)
        except NotFound:
            sandbox = None
        if _is_claimant(sandbox, claim):
            return _RETRY
        meta = warm_pod.metadata
        await self._client.delete(WARMPOD, meta.name, meta.namespace, uid=meta.uid)
        message = f"claimed for the Sandbox {where.namespace}/{where.name}, which does not exist"
        self._events.emit(WARMPOD, meta, "Warning", "Orphaned", message)
        return None

    async def _pod(self, warm_pod: WarmPod) -> Pod | None:
        """Return the WarmPod's pod. If it was ready and the cache disagrees, read it from the API server."""
        meta = warm_pod.metadata
        pod = self._caches.pods.get(meta.name, meta.namespace)
        if warm_pod.status.phase == "Ready" and (pod is None or not is_ready(pod)):
            try:
                pod = await self._client.get(POD, meta.name, meta.namespace)
            except NotFound:
                return None
        return pod if pod is not None and owned(pod, meta.uid) else None

    def _note(self, warm_pod: WarmPod, trouble_: str) -> None:
        """Record what keeps the WarmPod from starting ("": nothing), unless it has been deleted."""
        meta = warm_pod.metadata
        if not trouble_ or self._caches.warm_pods.get(meta.name, meta.namespace) is not None:
            self._records.note(pool_of(warm_pod), meta.name, trouble_)

    def _warm_pod_changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        if new is not None:
            self.controller.enqueue(key_of(new))
        elif old is not None:
            self._records.gone(pool_of(old), old.metadata.name)

    def _pool_changed(self, old: WarmPool | None, new: WarmPool | None) -> None:
        # The unclaimed WarmPods of a deleted pool must be deleted.
        if old is not None and new is None:
            for member in self._caches.members(key_of(old)):
                self.controller.enqueue(key_of(member))

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        changed = new or old
        if changed is not None:
            for owner in changed.metadata.owner_references:
                if owner.kind == WARMPOD.kind:
                    self.controller.enqueue((changed.metadata.namespace, owner.name))

    def _sandbox_changed(self, old: Sandbox | None, new: Sandbox | None) -> None:
        # A deleted Sandbox may have left its WarmPod.
        if old is not None and new is None:
            reference = old.spec.warm_pod or old.status.warm_pod_ref
            if reference is not None:
                self.controller.enqueue((reference.namespace, reference.name))


def _is_claimant(sandbox: Sandbox | None, claim: WarmPodClaim) -> bool:
    """Whether this Sandbox made the claim, and not another one that had the same name."""
    if sandbox is None:
        return False
    return names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid) == claim.claim_id
