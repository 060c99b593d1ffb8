"""Warm pools are WarmPool objects, whoever makes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from llmsafespace_gateway.backends.base import Condition, RuntimeUnavailable, WarmPoolSpec, WarmPoolStatus
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.backends.kubernetes.errors import explained
from llmsafespace_gateway.backends.kubernetes.objects import cores, resources, size
from llmsafespace_gateway.errors import ApiError
from llmsafespace_operator.resources import types
from llmsafespace_operator.resources.kinds import WARMPOOL

ALL = "*"
SEEN_LIMIT = 5.0  # seconds for our own watch to show a deletion


class Pools:
    """The pools of the configured pool namespaces; new ones go to the first of these."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._tenants = cluster.settings.sandbox_namespaces

    def visible(self, tenant: str | None) -> list[WarmPoolSpec]:
        """See SandboxBackend.pools."""
        found = (pool for pool in self._known().values() if visible(pool, tenant, self._tenants))
        return sorted((pool_spec(pool, self._tenants) for pool in found), key=lambda spec: spec.name)

    async def apply(self, spec: WarmPoolSpec) -> None:
        """See SandboxBackend.apply_pool."""
        resolved = self._cluster.catalogue.runtime(spec.runtime)
        if isinstance(resolved, str):
            raise RuntimeUnavailable(resolved)
        there = self._known().get(spec.name)
        with explained(f"the warm pool {spec.name} could not be kept"):
            if there is None:
                pool = await self._create(spec)
            else:
                body = {"spec": pool_body(spec)}
                meta = there.metadata
                pool = await self._cluster.client.patch(WARMPOOL, meta.name, body, meta.namespace)
        self._cluster.warm_pools.observe(pool)

    async def _create(self, spec: WarmPoolSpec) -> types.WarmPool:
        namespace = self._cluster.settings.pool_namespaces[0]
        allowed = [each for each, tenant in self._tenants.items() if tenant == spec.tenant]
        body = {
            "metadata": {"name": spec.name, "namespace": namespace},
            "spec": {**pool_body(spec), "allowedNamespaces": allowed if spec.tenant is not None else [ALL]},
        }
        return await self._cluster.client.create(WARMPOOL, body, namespace)

    async def delete(self, name: str) -> None:
        """See SandboxBackend.delete_pool. Returns when this process knows it, too."""
        there = self._known().get(name)
        if there is None:
            return
        namespace, uid = there.metadata.namespace, there.metadata.uid
        with explained(f"the warm pool {name} could not be removed"):
            await self._cluster.client.delete(WARMPOOL, name, namespace, uid=uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEEN_LIMIT):
                await self._cluster.warm_pools.wait(name, namespace, lambda now: _is_over(now, uid))

    def status(self, name: str) -> WarmPoolStatus:
        """See SandboxBackend.pool_status."""
        there = self._known().get(name)
        if there is None:
            raise ApiError("not_found", f"there is no warm pool {name}")
        return pool_status(there.status)

    def _known(self) -> dict[str, types.WarmPool]:
        """By name; of two with one name that of the namespace named first."""
        found: dict[str, types.WarmPool] = {}
        order = self._cluster.settings.pool_namespaces
        for pool in sorted(
            self._cluster.warm_pools.items(), key=lambda each: order.index(each.metadata.namespace)
        ):
            if pool.metadata.deletion_timestamp is None:
                found.setdefault(pool.metadata.name, pool)
        return found


def _is_over(pool: types.WarmPool | None, uid: str) -> bool:
    return pool is None or pool.metadata.uid != uid or pool.metadata.deletion_timestamp is not None


def visible(pool: types.WarmPool, tenant: str | None, tenants: Mapping[str, str]) -> bool:
    """Whether it serves this tenant (None: whoever); `tenants` are the namespaces' tenants."""
    allowed = pool.spec.allowed_namespaces
    return tenant is None or ALL in allowed or tenant in {tenants.get(each) for each in allowed}


def pool_spec(pool: types.WarmPool, tenants: Mapping[str, str]) -> WarmPoolSpec:
    """The pool as the gateway knows pools; it has a tenant when it serves one tenant only."""
    spec = pool.spec
    wanted = spec.resources
    served = {tenants[each] for each in spec.allowed_namespaces if each in tenants}
    own = len(served) == 1 and ALL not in spec.allowed_namespaces
    return WarmPoolSpec(
        name=pool.metadata.name,
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
        tenant=served.pop() if own else None,
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
            "cpu": cores(spec.resources.cpu),
            "memory": size(spec.resources.memory),
            "ephemeralStorage": size(spec.resources.storage),
        },
        "preloadPackages": list(spec.preload_packages),
        "preloadScripts": [{"name": name, "content": content} for name, content in spec.preload_scripts],
        "autoScaling": {
            "enabled": spec.auto_scaling,
            "targetUtilization": spec.target_utilization,
            "scaleDownDelay": spec.scale_down_delay,
        },
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
