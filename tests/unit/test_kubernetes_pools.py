"""The Kubernetes backend tells of pools as they come, change and go, whoever does that."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from llmsafespace_gateway.backends.kubernetes.pools import Pools
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kinds import WARMPOOL
from llmsafespace_kube.resources.kubernetes import Metadata


def _pool(version: int, min_size: int, *, going: bool = False, **status: Any) -> types.WarmPool:
    meta = Metadata(
        name="p",
        namespace="pools",
        uid="u",
        resource_version=str(version),
        labels={names.TENANT: "acme"},
        deletion_timestamp=datetime(2026, 1, 1, tzinfo=UTC) if going else None,
    )
    wanted = types.WarmPoolSpec(runtime="python", min_size=min_size, owner="u-1")
    return types.WarmPool(meta, wanted, types.WarmPoolStatus(**status))


def test_changes_are_told_and_a_status_is_none() -> None:
    client: Any = None
    informer: Informer[types.WarmPool] = Informer(client, WARMPOOL, ["pools"])
    settings = SimpleNamespace(sandbox_namespaces={"agents": "acme"}, pool_namespaces=["pools"])
    cluster: Any = SimpleNamespace(settings=settings, warm_pools=informer)
    told: list[tuple[str, int, bool]] = []
    Pools(cluster).on_pool = lambda pool, there: told.append((pool.key, pool.min_size, there))
    for pool in (
        _pool(1, 2),
        _pool(2, 2, available_pods=2),
        _pool(3, 4),
        _pool(4, 4, available_pods=4),
        _pool(5, 4, going=True),
    ):
        informer.observe(pool)
    assert told == [("acme/p", 2, True), ("acme/p", 4, True), ("acme/p", 4, False)]
