"""The informers that the reconcilers of WarmPools and WarmPods use."""

from __future__ import annotations

import msgspec

from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import (
    RuntimeEnvironment,
    Sandbox,
    SandboxProfile,
    WarmPod,
    WarmPool,
)

_POOL_INDEX = "pool"


class Caches(msgspec.Struct, frozen=True, kw_only=True):
    """The informers. Create it before they start, because it adds an index."""

    warm_pools: Informer[WarmPool]
    warm_pods: Informer[WarmPod]
    pods: Informer[Pod]
    sandboxes: Informer[Sandbox]
    profiles: Informer[SandboxProfile]
    runtimes: Informer[RuntimeEnvironment]
    catalogue: Catalogue

    def __post_init__(self) -> None:
        self.warm_pods.index(_POOL_INDEX, lambda warm_pod: ["/".join(pool_of(warm_pod))])

    def pool(self, warm_pod: WarmPod) -> WarmPool | None:
        """Return the pool of a WarmPod, or None if it does not exist."""
        namespace, name = pool_of(warm_pod)
        return self.warm_pools.get(name, namespace)

    def members(self, pool: Key) -> list[WarmPod]:
        """Return the WarmPods of a pool that are not being deleted."""
        found = self.warm_pods.by_index(_POOL_INDEX, "/".join(pool))
        return [one for one in found if one.metadata.deletion_timestamp is None]


def pool_of(warm_pod: WarmPod) -> Key:
    """Return the pool of a WarmPod. It is always in the WarmPod's namespace, whatever `poolRef` says."""
    return warm_pod.metadata.namespace, warm_pod.spec.pool_ref.name
