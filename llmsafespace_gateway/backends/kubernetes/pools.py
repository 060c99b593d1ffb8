"""Warm pools are WarmPool objects, whoever makes them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from llmsafespace_gateway.backends.base import (
    Condition,
    RuntimeUnavailable,
    SandboxSpec,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.backends.kubernetes.errors import explained
from llmsafespace_gateway.backends.kubernetes.objects import resources
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.tenants import DEFAULT_TENANT
from llmsafespace_kube.api.errors import AlreadyExists
from llmsafespace_kube.claims.choice import Request, misfit
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kinds import WARMPOOL
from llmsafespace_protocol.quantities import format_cores, format_size

PoolChanged = Callable[[WarmPoolSpec, bool], None]  # a pool, and whether it is there now

ALL = "*"
SEEN_LIMIT = 5.0  # seconds for our own watch to show a deletion


class Pools:
    """The pools of the configured pool namespaces; new ones go to the first of these.

    Names are a tenant's own, objects' names are not: a pool whose name another one has is an object of
    another name, and its label says what it is called.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._tenants = cluster.settings.sandbox_namespaces
        self.on_pool: PoolChanged = lambda pool, there: None
        cluster.warm_pools.on_change(self._changed)

    def visible(self, tenant: str | None) -> list[WarmPoolSpec]:
        """See SandboxBackend.pools."""
        found = (spec for pool, spec in self._known() if visible(pool, tenant, self._tenants))
        return sorted(found, key=lambda spec: spec.name)

    def named(self, spec: SandboxSpec) -> types.WarmPool | None:
        """The pool that a request names: of two its own tenant's. Raises ApiError(not_found)."""
        if spec.warm_pool is None:
            return None
        there = [
            (pool, known)
            for pool, known in self._known()
            if known.name == spec.warm_pool and visible(pool, spec.tenant, self._tenants)
        ]
        if not there:
            name = spec.warm_pool[:64]
            raise ApiError(
                "not_found",
                f"there is no warm pool {name!r} that you can see; GET /api/v1/warmpools lists them",
                {"warmPool": name},
            )
        return min(there, key=lambda each: each[1].tenant != spec.tenant)[0]

    def check(self, request: Request, pool: types.WarmPool) -> None:
        """Raise ApiError(invalid_request) when the pool that a request names cannot serve it."""
        reason = misfit(request, self._cluster.catalogue.in_use(pool, []))
        if reason is not None:
            name = pool_name(pool)
            raise ApiError(
                "invalid_request",
                f"warmPool: {name!r} does not fit this request: {reason}",
                {"field": "body.warmPool", "warmPool": name},
            )

    def of(self, pod: types.WarmPod) -> WarmPoolSpec | None:
        """The pool of a warm pod, None when it is gone."""
        reference = pod.spec.pool_ref
        pool = self._cluster.warm_pools.get(reference.name, pod.metadata.namespace)
        return self.spec(pool) if pool is not None else None

    def spec(self, pool: types.WarmPool) -> WarmPoolSpec:
        """A pool as the gateway knows pools."""
        return pool_spec(pool, self._tenants)

    async def apply(self, spec: WarmPoolSpec) -> None:
        """See SandboxBackend.apply_pool."""
        resolved = self._cluster.catalogue.runtime(spec.runtime)
        if isinstance(resolved, str):
            raise RuntimeUnavailable(resolved)
        there = self._object(spec)
        with explained(f"the warm pool {spec.name} could not be kept"):
            if there is None:
                pool = await self._create(spec)
            else:
                meta = there.metadata
                ours = {"allowedNamespaces": self._allowed(spec)} if names.POOL_NAME in meta.labels else {}
                body = {"spec": pool_body(spec) | ours}
                pool = await self._cluster.client.patch(WARMPOOL, meta.name, body, meta.namespace)
        self._cluster.warm_pools.observe(pool)

    async def _create(self, spec: WarmPoolSpec) -> types.WarmPool:
        namespace = self._cluster.settings.pool_namespaces[0]
        labels = {names.POOL_NAME: spec.name}
        if spec.tenant is not None:
            labels[names.TENANT] = spec.tenant
        body = {
            "metadata": {"name": spec.name, "namespace": namespace, "labels": labels},
            "spec": {**pool_body(spec), "allowedNamespaces": self._allowed(spec)},
        }
        try:
            made = await self._cluster.client.create(WARMPOOL, body, namespace)
        except AlreadyExists:
            body["metadata"] = {**body["metadata"], "name": object_name(spec)}
            made = await self._cluster.client.create(WARMPOOL, body, namespace)
        if made.spec.published == spec.published:
            return made
        # CRDs of an earlier version drop what they do not know, and its code would run in anybody's sandbox.
        await self._cluster.client.delete(WARMPOOL, made.metadata.name, namespace, uid=made.metadata.uid)
        raise ApiError(
            "service_unavailable",
            "the cluster's CRDs are older than this gateway: an administrator applies those of its chart "
            "(kubectl apply --server-side -f deploy/helm/llmsafespace/crds/)",
        )

    def _allowed(self, spec: WarmPoolSpec) -> list[str]:
        """The namespaces of the tenants that it serves."""
        if spec.tenant is None or (spec.published and spec.tenant == DEFAULT_TENANT):
            return [ALL]
        return [each for each, tenant in self._tenants.items() if tenant == spec.tenant]

    async def delete(self, spec: WarmPoolSpec) -> None:
        """See SandboxBackend.delete_pool. Returns when this process knows it, too."""
        there = self._object(spec)
        if there is None:
            return
        name, namespace, uid = there.metadata.name, there.metadata.namespace, there.metadata.uid
        with explained(f"the warm pool {spec.name} could not be removed"):
            await self._cluster.client.delete(WARMPOOL, name, namespace, uid=uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEEN_LIMIT):
                await self._cluster.warm_pools.wait(name, namespace, lambda now: _is_over(now, uid))

    def status(self, spec: WarmPoolSpec) -> WarmPoolStatus:
        """See SandboxBackend.pool_status."""
        there = self._object(spec)
        if there is None:
            raise ApiError("not_found", f"there is no warm pool {spec.name}")
        return pool_status(there.status)

    def _changed(self, old: types.WarmPool | None, new: types.WarmPool | None) -> None:
        """Tell of a pool that is new, changed or gone, whoever did that; not of each change of its status."""
        pools = [(self.spec(pool), _is_going(pool)) for pool in (old, new) if pool is not None]
        if len(pools) == 2 and pools[0] == pools[1]:
            return
        known = {spec.key: spec for _, spec in self._known()}
        for key, spec in {spec.key: spec for spec, _ in pools}.items():
            self.on_pool(known.get(key, spec), key in known)

    def _object(self, spec: WarmPoolSpec) -> types.WarmPool | None:
        return next((pool for pool, known in self._known() if known.key == spec.key), None)

    def _known(self) -> list[tuple[types.WarmPool, WarmPoolSpec]]:
        """Of two with one name and tenant that of the namespace named first."""
        found: dict[str, tuple[types.WarmPool, WarmPoolSpec]] = {}
        order = self._cluster.settings.pool_namespaces
        for pool in sorted(
            self._cluster.warm_pools.items(), key=lambda each: order.index(each.metadata.namespace)
        ):
            if not _is_going(pool):
                spec = self.spec(pool)
                found.setdefault(spec.key, (pool, spec))
        return list(found.values())


def object_name(spec: WarmPoolSpec) -> str:
    """A name for its object that no other pool has, short enough for those of its WarmPods."""
    mark = hashlib.sha256(spec.key.encode()).hexdigest()[:10]
    return f"{spec.name[:40].rstrip('-.')}-{mark}"


def pool_name(pool: types.WarmPool) -> str:
    """What people call it."""
    return pool.metadata.labels.get(names.POOL_NAME, pool.metadata.name)


def _is_over(pool: types.WarmPool | None, uid: str) -> bool:
    return pool is None or pool.metadata.uid != uid or _is_going(pool)


def _is_going(pool: types.WarmPool) -> bool:
    return pool.metadata.deletion_timestamp is not None


def visible(pool: types.WarmPool, tenant: str | None, tenants: Mapping[str, str]) -> bool:
    """Whether it serves this tenant (None: whoever); `tenants` are the namespaces' tenants."""
    allowed = pool.spec.allowed_namespaces
    return tenant is None or ALL in allowed or tenant in {tenants.get(each) for each in allowed}


def pool_spec(pool: types.WarmPool, tenants: Mapping[str, str]) -> WarmPoolSpec:
    """The pool as the gateway knows pools. One made with kubectl has a tenant when it serves only that."""
    spec = pool.spec
    wanted = spec.resources
    served = {tenants[each] for each in spec.allowed_namespaces if each in tenants}
    own = len(served) == 1 and ALL not in spec.allowed_namespaces
    return WarmPoolSpec(
        name=pool_name(pool),
        runtime=spec.runtime,
        min_size=spec.min_size,
        max_size=spec.max_size,
        security_level=spec.security_level,
        resources=resources(wanted.cpu, wanted.memory, wanted.ephemeral_storage),
        preload_packages=tuple(spec.preload_packages),
        preload_scripts=tuple((script.name, script.content) for script in spec.preload_scripts),
        ttl=spec.ttl,
        auto_scaling=spec.auto_scaling.enabled,
        target_utilization=spec.auto_scaling.target_utilization,
        scale_down_delay=spec.auto_scaling.scale_down_delay,
        tenant=pool.metadata.labels.get(names.TENANT) or (served.pop() if own else None),
        owner=spec.owner,
        published=spec.published,
    )


def pool_body(spec: WarmPoolSpec) -> dict[str, Any]:
    """What of a WarmPool's spec the gateway keeps; the rest is its maker's."""
    return {
        "runtime": spec.runtime,
        "minSize": spec.min_size,
        "maxSize": spec.max_size,
        "securityLevel": spec.security_level,
        "ttl": spec.ttl,
        "resources": {
            "cpu": format_cores(spec.resources.cpu),
            "memory": format_size(spec.resources.memory),
            "ephemeralStorage": format_size(spec.resources.storage),
        },
        "preloadPackages": list(spec.preload_packages),
        "preloadScripts": [{"name": name, "content": content} for name, content in spec.preload_scripts],
        "autoScaling": {
            "enabled": spec.auto_scaling,
            "targetUtilization": spec.target_utilization,
            "scaleDownDelay": spec.scale_down_delay,
        },
        "published": spec.published,
        **({"owner": spec.owner} if spec.owner is not None else {}),
    }


def pool_status(status: types.WarmPoolStatus) -> WarmPoolStatus:
    """How it stands, as the operator wrote."""
    return WarmPoolStatus(
        available=status.available_pods,
        assigned=status.assigned_pods,
        pending=status.pending_pods,
        last_scale_time=status.last_scale_time.timestamp() if status.last_scale_time is not None else None,
        conditions=tuple(
            Condition(
                type=each.type,
                status=each.status,
                reason=each.reason,
                message=each.message,
                last_transition_time=each.last_transition_time.timestamp()
                if each.last_transition_time is not None
                else 0.0,
            )
            for each in status.conditions
        ),
    )
