"""What stays when a release is upgraded or goes. Its programs never start, as their images are nowhere."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.cluster.chart.support_chart import Helm, HelmError, Object, Release, own_values
from tests.cluster.support import Kubectl, eventually

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

    with pytest.raises(HelmError, match=rf"{idle.leaving} is no longer in the values.*\(Sandboxes: 1\)"):
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


def test_a_volume_that_there_never_was_does_not_stay(idle: Idle) -> None:
    """`helm upgrade --wait` would wait for it without end."""
    idle.upgrade(gateway={**SMALL, "persistence": {"enabled": True, "storageClass": "no-such"}})
    assert idle.kubectl.items("persistentvolumeclaims", idle.system)
    idle.upgrade(gateway={**SMALL, "persistence": {"enabled": False}})
    eventually(lambda: not idle.kubectl.items("persistentvolumeclaims", idle.system), what="no claim")


@pytest.fixture
def storage_class(kubectl: Kubectl) -> Iterator[str]:
    """With one volume, which no pod ever mounts."""
    name = f"idle-{secrets.token_hex(3)}"
    spec = {
        "storageClassName": name,
        "capacity": {"storage": "3Gi"},
        "accessModes": ["ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"},
    }
    kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
    yield name
    kubectl("delete", "persistentvolume", name, "--wait=false")


def test_the_volume_of_sqlite_outlives_a_change_to_another_store(idle: Idle, storage_class: str) -> None:
    def claims() -> list[tuple[str, str]]:
        found = idle.kubectl.items("persistentvolumeclaims", idle.system)
        stay = [each for each in found if "deletionTimestamp" not in each["metadata"]]
        return [(each["metadata"]["uid"], each["status"]["phase"]) for each in stay]

    def mounted() -> bool:
        where = ("--namespace", idle.system)
        gateway = idle.kubectl.json("get", "deployment", idle.component("gateway"), *where)
        volumes = gateway["spec"]["template"]["spec"]["volumes"]
        return any("persistentVolumeClaim" in each for each in volumes)

    sqlite = {**SMALL, "persistence": {"enabled": True, "size": "2Gi", "storageClass": storage_class}}
    idle.upgrade(gateway=sqlite)
    [(uid, _)] = eventually(lambda: c if (c := claims()) and c[0][1] == "Bound" else [], what="a volume")
    assert mounted()

    # Not a word of the volume any more.
    for other in ({"database": {"existingSecret": "database"}}, {"persistence": {"enabled": False}}):
        idle.upgrade(gateway={**SMALL, **other})
        assert (claims(), mounted()) == ([(uid, "Bound")], False)

    idle.upgrade(gateway=sqlite)
    assert (claims(), mounted()) == ([(uid, "Bound")], True)
    idle.helm("rollback", idle.name, "--namespace", idle.system)
    assert (claims(), mounted()) == ([(uid, "Bound")], False)

    idle.uninstall()
    assert claims() == []
