"""Reads the state of a Sandbox and its objects from the caches, for the plan.

A cache can be behind. Before the operator concludes that a pod or WarmPod is gone, it reads it from the API
server.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Forbidden, NotFound
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims import choice, profiles, runtimes
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import EVENT, POD, WARMPOD, Kind
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    NamedObject,
    RuntimeEnvironment,
    Sandbox,
    SandboxProfile,
    WarmPod,
    WarmPool,
)
from llmsafespace_operator.pods.ends import scheduled_at, trouble
from llmsafespace_operator.pods.start import owned
from llmsafespace_operator.sandbox.plan import Observed
from llmsafespace_operator.sandbox.status import Obstacle

T = TypeVar("T", bound=Sandbox | WarmPod | Pod)

_SLOW = 5.0  # seconds on a node after which the pod's events are read
CLAIM_INDEX = "sandbox"  # index of WarmPods by the public id of the sandbox that claimed them


class Caches(msgspec.Struct, frozen=True, kw_only=True):
    """The informers that the Sandbox reconciler uses."""

    sandboxes: Informer[Sandbox]
    warm_pods: Informer[WarmPod]
    pods: Informer[Pod]
    profiles: Informer[SandboxProfile]
    runtimes: Informer[RuntimeEnvironment]
    warm_pools: Informer[WarmPool]


class Wanted(msgspec.Struct, frozen=True):
    """The objects that a Sandbox refers to. `warning` says how the runtime differs from the requested one.

    `pool` is the WarmPool that the Sandbox names; a cold start preloads the same packages and scripts.
    """

    environment: RuntimeEnvironment
    profile: SandboxProfile | None
    warning: str
    pool: WarmPool | None = None


class Observer:
    """Reads the objects that belong to a Sandbox. Create it before the informers start: it adds an index."""

    def __init__(self, client: KubeClient, caches: Caches, catalogue: Catalogue, settings: Settings) -> None:
        self._client = client
        self._caches = caches
        self._catalogue = catalogue
        self._settings = settings
        caches.warm_pods.index(CLAIM_INDEX, _claim_ids)

    async def observe(self, sandbox: Sandbox) -> Observed:
        """Return the state that the plan needs. Raises KubeError."""
        warm_pod, surplus = chosen(sandbox, self._claimed(sandbox))
        if warm_pod is None and not sandbox.status.end:
            warm_pod = await self._named(sandbox)
        starts = sandbox.status.phase in ("Pending", "Creating")
        wanted = self.wanted(sandbox) if starts else None
        found = wanted if isinstance(wanted, Wanted) else None
        pod = await self._pod(sandbox, warm_pod)
        return Observed(
            sandbox=sandbox,
            now=datetime.now(UTC),
            settings=self._settings,
            warm_pod=warm_pod,
            surplus=surplus,
            pod=pod,
            complaint=await self._complaint(pod) if starts and pod is not None else "",
            runtime=self._runtime(warm_pod, found) or sandbox.spec.runtime,
            warning=found.warning if found is not None else "",
            obstacle=wanted if isinstance(wanted, Obstacle) else None,
        )

    def wanted(self, sandbox: Sandbox) -> Wanted | Obstacle:
        """Return the objects with which the Sandbox would start, or why it cannot start."""
        spec = sandbox.spec
        if spec.storage.persistent:
            return Obstacle("StorageUnavailable", "persistent storage is not supported yet: leave it out")
        resolved = self._catalogue.runtime(spec.runtime)
        if isinstance(resolved, str):
            return Obstacle("RuntimeUnavailable", resolved)
        namespace = sandbox.metadata.namespace
        profile = self._catalogue.profile(spec.profile_ref, spec.security_level, namespace)
        if isinstance(profile, str):
            return Obstacle("ProfileNotFound", profile)
        if missing := profiles.missing_runtime_class(profile):
            return Obstacle(names.NO_RUNTIME_CLASS, missing)
        pool = (
            choice.named(spec.warm_pool, namespace, self._caches.warm_pools.items())
            if spec.warm_pool
            else None
        )
        if isinstance(pool, str):
            return Obstacle("WarmPoolNotFound", pool)
        return Wanted(resolved.environment, profile, resolved.warning, pool)

    def _claimed(self, sandbox: Sandbox) -> list[WarmPod]:
        public = names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid)
        return [
            one
            for one in self._caches.warm_pods.by_index(CLAIM_INDEX, public)
            if is_claimed_for(one, sandbox)
        ]

    async def _named(self, sandbox: Sandbox) -> WarmPod | None:
        """Read the WarmPod that the Sandbox names from the API server: the cache does not show its claim.

        Returns None for a namespace that is no longer served, in which the operator has no rights.
        """
        reference = reference_of(sandbox)
        if reference is None or reference.namespace not in self._settings.pool_namespaces:
            return None
        found = await self._live(WARMPOD, reference.name, reference.namespace)
        return found if found is not None and is_claimed_for(found, sandbox) else None

    async def _pod(self, sandbox: Sandbox, warm_pod: WarmPod | None) -> Pod | None:
        """Return the pod. It has the name of its owner, the WarmPod or the Sandbox."""
        owner = warm_pod.metadata if warm_pod is not None else sandbox.metadata
        found = self._caches.pods.get(owner.name, owner.namespace)
        known = warm_pod is not None or sandbox.status.pod_name != ""
        if found is None and known and not sandbox.status.end and owner.deletion_timestamp is None:
            found = await self._live(POD, owner.name, owner.namespace)
        return found if found is not None and owned(found, owner.uid) else None

    async def _complaint(self, pod: Pod) -> str:
        """Return the last warning event of a slow pod: errors of volumes and networks are only in events."""
        since = scheduled_at(pod)
        if pod.status.phase != "Pending" or trouble(pod) or since is None:
            return ""
        if (datetime.now(UTC) - since).total_seconds() < _SLOW:
            return ""
        only = f"regarding.uid={pod.metadata.uid},type=Warning"
        try:
            events, _ = await self._client.list(EVENT, pod.metadata.namespace, field_selector=only)
        except Forbidden:
            return ""
        last = max(events, key=lambda each: int(each.metadata.resource_version or 0), default=None)
        return f"{last.reason}: {last.note}" if last is not None else ""

    async def _live(self, kind: Kind[T], name: str, namespace: str) -> T | None:
        try:
            return await self._client.get(kind, name, namespace)
        except NotFound:
            return None

    def _runtime(self, warm_pod: WarmPod | None, wanted: Wanted | None) -> str:
        environment = wanted.environment if wanted is not None else None
        if warm_pod is not None:
            environment = self._caches.runtimes.get(warm_pod.status.runtime)
        return runtimes.label(environment) if environment is not None else ""


def chosen(sandbox: Sandbox, claimed: Iterable[WarmPod]) -> tuple[WarmPod | None, tuple[WarmPod, ...]]:
    """Return the WarmPod that a Sandbox uses, and the other WarmPods that are claimed for it.

    There can be several: an operator that lost the answer to its claim may have claimed another one. The
    WarmPod that the Sandbox names is used. It names none if its start is cold. Before that is decided, the
    oldest claim counts.
    """
    by_age = sorted(claimed, key=_claimed_at)
    reference = reference_of(sandbox)
    if reference is not None:
        named = [one for one in by_age if _name(one) == reference]
    elif names.made_by_gateway(sandbox.metadata.name) or sandbox.status.start_kind == "cold":
        named = []
    else:
        named = by_age[:1]
    used = named[0] if named else None
    return used, tuple(one for one in by_age if one is not used)


def reference_of(sandbox: Sandbox) -> NamedObject | None:
    """Return the WarmPod that a Sandbox names: in the spec (created by a gateway) or in the status."""
    if not names.made_by_gateway(sandbox.metadata.name):
        return sandbox.status.warm_pod_ref
    named = sandbox.spec.warm_pod
    return NamedObject(named.name, named.namespace) if named is not None else None


def is_claimed_for(warm_pod: WarmPod, sandbox: Sandbox) -> bool:
    """Whether the WarmPod's claim names this Sandbox, by name and uid. Only `spec.claim` decides."""
    claim, meta = warm_pod.spec.claim, sandbox.metadata
    return (
        claim is not None
        and claim.claim_id == names.sandbox_id(meta.name, meta.uid)
        and claim.sandbox == NamedObject(meta.name, meta.namespace)
    )


def _claim_ids(warm_pod: WarmPod) -> list[str]:
    return [warm_pod.spec.claim.claim_id] if warm_pod.spec.claim is not None else []


def _claimed_at(warm_pod: WarmPod) -> tuple[datetime, str]:
    claim = warm_pod.spec.claim
    return (claim.time if claim is not None else datetime.max.replace(tzinfo=UTC)), warm_pod.metadata.name


def _name(warm_pod: WarmPod) -> NamedObject:
    return NamedObject(warm_pod.metadata.name, warm_pod.metadata.namespace)
