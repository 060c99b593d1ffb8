"""The last thing before an installation goes: everything that waits for its operator."""

from __future__ import annotations

from typing import Any

import pytest

from llmsafespace_kube.resources.names import COMPONENT, SANDBOX_FINALIZER
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_operator.teardown import Leftovers, teardown
from tests.cluster.support import Kubectl, Namespaces

POOL = {"kind": "WarmPool", "metadata": {"name": "pool"}, "spec": {"runtime": "python", "minSize": 0}}
POD = {
    "kind": "WarmPod",
    "metadata": {"name": "pool-1"},
    "spec": {"poolRef": {"name": "pool", "namespace": "pools"}},
}
SANDBOX = {"kind": "Sandbox", "metadata": {"name": "one"}, "spec": {"runtime": "python"}}
HELD = {**SANDBOX, "metadata": {"name": "held", "finalizers": [SANDBOX_FINALIZER]}}


def settings(sandboxes: str, pools: str) -> Settings:
    return Settings(
        system_namespace="system",
        key_file="key",
        gateway_url="http://gateway",
        sandbox_namespaces={sandboxes: "default"},
        pool_namespaces=[pools],
    )


def apply(kubectl: Kubectl, namespace: str, *objects: dict[str, Any]) -> None:
    kubectl.apply(*({"apiVersion": "llmsafespace.dev/v1", **each} for each in objects), namespace=namespace)


async def test_sandboxes_pools_and_warm_pods_go(
    crds: None, client: Any, kubectl: Kubectl, namespaces: Namespaces
) -> None:
    sandboxes, pools = namespaces("sandboxes"), namespaces("pools")
    apply(kubectl, sandboxes, SANDBOX)
    apply(kubectl, pools, POOL, POD)
    await teardown(client, settings(sandboxes, pools), limit=30)
    assert kubectl.items("sandboxes", sandboxes) == []
    assert kubectl.items("warmpools", pools) == kubectl.items("warmpods", pools) == []


async def test_the_policies_of_profiles_go_and_no_others(
    crds: None, client: Any, kubectl: Kubectl, namespaces: Namespaces
) -> None:
    pools = namespaces("pools")
    for name, labels in (("profile", {COMPONENT: "sandbox-profile"}), ("deny", {})):
        kubectl.apply(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": name, "labels": labels},
                "spec": {"podSelector": {}},
            },
            namespace=pools,
        )
    await teardown(client, settings(namespaces("sandboxes"), pools), limit=30)
    assert [each["metadata"]["name"] for each in kubectl.items("networkpolicies", pools)] == ["deny"]


async def test_what_stays_is_named(crds: None, client: Any, kubectl: Kubectl, namespaces: Namespaces) -> None:
    sandboxes = namespaces("sandboxes")
    apply(kubectl, sandboxes, HELD)
    with pytest.raises(Leftovers, match=f"Sandbox {sandboxes}/held.*Does the operator run"):
        await teardown(client, settings(sandboxes, namespaces("pools")), limit=2)


async def test_namespaces_that_are_gone_are_nothing_to_wait_for(crds: None, client: Any) -> None:
    await teardown(client, settings("test-no-such-sandboxes", "test-no-such-pools"), limit=30)
