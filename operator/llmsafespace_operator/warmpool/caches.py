"""The informers that pools and their WarmPods are reconciled from."""

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
    """What is known of the cluster. Made before the informers start, as it adds an index."""

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
        """The pool of a WarmPod, if there is one."""
        namespace, name = pool_of(warm_pod)
        return self.warm_pools.get(name, namespace)

    def members(self, pool: Key) -> list[WarmPod]:
        """The WarmPods of a pool that nobody is deleting."""
        found = self.warm_pods.by_index(_POOL_INDEX, "/".join(pool))
        return [one for one in found if one.metadata.deletion_timestamp is None]


def pool_of(warm_pod: WarmPod) -> Key:
    """The pool that it belongs to: always one of its own namespace, whatever it says."""
    return warm_pod.metadata.namespace, warm_pod.spec.pool_ref.name
