"""What would wait for ever says so in seconds: an unserved namespace, no runtime class, no fitting pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.support import Kubectl, Namespaces, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import SANDBOX, WARMPOOL, Sandboxes, condition, manifest

SOON = 20.0  # seconds


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    runtime("python")
    made = install(watch_unserved=True)
    made.operator()
    return made


def events(kubectl: Kubectl, namespace: str) -> set[str]:
    return {one["reason"] for one in kubectl.items("events.events.k8s.io", namespace)}


@pytest.mark.parametrize(("kind", "resource"), [("Sandbox", SANDBOX), ("WarmPool", WARMPOOL)])
def test_a_namespace_that_nobody_serves(
    installation: Installation, kubectl: Kubectl, namespaces: Namespaces, kind: str, resource: str
) -> None:
    elsewhere = namespaces("unserved")
    kubectl.apply(manifest(kind, "lost", {"runtime": "python:3.11"}), namespace=elsewhere)

    def told() -> str:
        found = kubectl.json("get", resource, "lost", "-n", elsewhere)
        ready = condition(found.get("status", {}), "Ready")
        assert ready["reason"] == "NamespaceNotServed"
        message: str = ready["message"]
        return message

    message = eventually(told, SOON)
    served = installation.sandboxes if kind == "Sandbox" else installation.pools
    assert served in message
    eventually(lambda: "NamespaceNotServed" in events(kubectl, elsewhere), SOON)


def test_a_security_level_without_its_runtime_class(installation: Installation, kubectl: Kubectl) -> None:
    objects = Sandboxes(installation, kubectl)
    profile = manifest("SandboxProfile", "high", {"runtimeClassName": "no-such-class"})
    kubectl.apply(profile, namespace=installation.system)
    objects.apply("strong", securityLevel="high")

    def told() -> bool:
        ready = condition(objects.status("strong"), "Ready")
        return ready["reason"] == "RuntimeClassNotFound" and "no-such-class" in ready["message"]

    eventually(told, SOON)
    eventually(lambda: "RuntimeClassNotFound" in events(kubectl, objects.namespace), SOON)
    objects.delete("strong")


def test_a_pool_that_is_smaller_than_what_people_ask_for(
    installation: Installation, kubectl: Kubectl
) -> None:
    spec = {"runtime": "python:3.11", "minSize": 0, "resources": {"cpu": "250m", "memory": "256Mi"}}
    kubectl.apply(manifest("WarmPool", "small", spec), namespace=installation.pools)

    def told() -> bool:
        found = kubectl.json("get", WARMPOOL, "small", "-n", installation.pools)
        one = condition(found.get("status", {}), "ServesDefaults")
        return one["status"] == "False" and "less than a sandbox's default of 500m" in one["message"]

    eventually(told, SOON)
    eventually(lambda: "SmallerThanDefault" in events(kubectl, installation.pools), SOON)
