"""What stays when a release is upgraded or goes. Its programs never start, as their images are nowhere."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.cluster.chart.support_chart import Helm, HelmError, Object, Release, own_values
from tests.cluster.support import Kubectl

SMALL = {"replicas": 1, "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}}}


class Idle(Release):
    """A release of objects alone."""

    @property
    def leaving(self) -> str:
        """A second namespace of Sandboxes."""
        return f"{self.name}-leaving"

    def serve(self, *sandboxes: str) -> None:
        """Upgrade to these namespaces of Sandboxes."""
        served = {"agent-sandboxes": None, **dict.fromkeys(sandboxes, "default")}
        self.upgrade(namespaces={"sandboxes": served, "pools": [self.pools]})

    def policies(self, namespace: str) -> set[str]:
        """The network policies there, without the release's name."""
        found = self.kubectl.items("networkpolicies", namespace)
        return {each["metadata"]["name"].removeprefix(self.component("")) for each in found}

    def uninstall(self) -> None:
        self.helm("uninstall", self.name, "--namespace", self.system, "--no-hooks")

    def _helm(self, *arguments: str) -> None:
        self.helm(*arguments, "--namespace", self.system, "--skip-crds", values=self.values)


@pytest.fixture(scope="module")
def idle(helm: Helm, kubectl: Kubectl, crds: None) -> Iterator[Idle]:
    name = f"idle-{secrets.token_hex(3)}"
    values: Object = {
        **own_values(name, 1),
        "image": {"registry": "localhost/nowhere", "pullPolicy": "Never"},
        "operator": SMALL,
        "gateway": SMALL,
        "egress": SMALL,
        "warmPools": {"python": None},
    }
    made = Idle(helm, kubectl, name, values)
    kubectl("create", "namespace", made.system)
    try:
        made.install()
        yield made
    finally:
        if helm("list", "--namespace", made.system, "--all", "--short").strip():
            made.uninstall()
        places = (made.system, made.sandboxes, made.leaving, made.pools)
        kubectl("delete", "namespace", "--ignore-not-found", *places)


def test_a_namespace_goes_out_of_the_values_empty_and_stays_shut(idle: Idle) -> None:
    idle.serve(idle.sandboxes, idle.leaving)
    sandbox = {"apiVersion": "llmsafespace.dev/v1", "kind": "Sandbox", "metadata": {"name": "left"}}
    idle.kubectl.apply({**sandbox, "spec": {"runtime": idle.runtime}}, namespace=idle.leaving)

    with pytest.raises(HelmError, match=rf"{idle.leaving} would be served no more.*\(Sandboxes: 1\)"):
        idle.serve(idle.sandboxes)
    assert idle.kubectl.items("rolebindings", idle.leaving), "nothing has changed"

    idle.kubectl("delete", "sandbox", "left", "--namespace", idle.leaving)
    idle.serve(idle.sandboxes)
    assert idle.kubectl.items("rolebindings", idle.leaving) == []
    assert idle.policies(idle.leaving) == {"default-deny", "sandboxes"}


def test_a_namespace_comes_back(idle: Idle) -> None:
    idle.serve(idle.sandboxes)
    idle.serve(idle.sandboxes, idle.leaving)
    assert idle.kubectl.items("rolebindings", idle.leaving)


def test_another_installation_takes_over_what_stayed(idle: Idle) -> None:
    idle.serve(idle.sandboxes, idle.leaving)
    idle.uninstall()
    for namespace in (idle.sandboxes, idle.leaving, idle.pools):
        assert idle.policies(namespace) == {"default-deny", "sandboxes"}
        assert idle.kubectl.items("rolebindings", namespace) == []

    idle.install()

    for namespace in (idle.sandboxes, idle.leaving, idle.pools):
        assert idle.policies(namespace) == {"default-deny", "sandboxes"}
        assert idle.kubectl.items("rolebindings", namespace)
