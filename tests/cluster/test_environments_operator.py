"""Runtimes and profiles: the operator says which can be had, and lets their images and cidrs through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import Manifest, Sandboxes, condition, manifest

RUNTIME = "runtimeenvironments.llmsafespace.dev"
PROFILE = "sandboxprofiles.llmsafespace.dev"
MISSING = "localhost/llmsafespace-test-no-such-image:1"


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation]) -> Installation:
    made = install(image_pull_policy="Never", start_timeout=30.0)
    made.operator()
    return made


@pytest.fixture
def environment(kubectl: Kubectl) -> Iterator[Callable[..., None]]:
    """Makes RuntimeEnvironments that are gone after the test."""
    made: list[str] = []

    def make(name: str, **spec: Any) -> None:
        made.append(name)
        kubectl.apply(manifest("RuntimeEnvironment", name, spec))

    yield make
    kubectl("delete", RUNTIME, *made, "--ignore-not-found")


def available(kubectl: Kubectl, name: str) -> Manifest:
    """The condition of a runtime, once it has been judged."""
    return condition(kubectl.json("get", RUNTIME, name).get("status", {}), "Available")


def images(kubectl: Kubectl, installation: Installation) -> list[str]:
    found = kubectl.json("get", "configmap", "llmsafespace-images", "-n", installation.system)
    listed: str = found["data"]["images"]
    return listed.split("\n")


def test_runtime_is_judged_and_its_image_listed(
    installation: Installation, kubectl: Kubectl, environment: Callable[..., None]
) -> None:
    environment("test-judged", image="localhost/judged:1", language="judged", version="1.0")
    assert eventually(lambda: available(kubectl, "test-judged"))["status"] == "True"
    status = kubectl.json("get", RUNTIME, "test-judged")["status"]
    assert status["available"] is True
    assert "lastValidated" in status
    eventually(lambda: "localhost/judged:1" in images(kubectl, installation))
    kubectl("delete", RUNTIME, "test-judged")
    eventually(lambda: "localhost/judged:1" not in images(kubectl, installation))


def test_image_that_is_not_pinned_is_not_listed(
    installation: Installation, kubectl: Kubectl, environment: Callable[..., None]
) -> None:
    environment("test-floating", image="localhost/floating:latest", language="floating")
    environment("test-fixed", image="localhost/fixed:1", language="fixed")
    assert eventually(lambda: available(kubectl, "test-floating"))["reason"] == "ImageNotPinned"
    eventually(lambda: "localhost/fixed:1" in images(kubectl, installation))
    assert "localhost/floating:latest" not in images(kubectl, installation)


def test_runtime_whose_image_is_missing_is_unavailable_until_it_names_another(
    installation: Installation, kubectl: Kubectl, environment: Callable[..., None]
) -> None:
    sandboxes = Sandboxes(installation, kubectl)
    environment("test-missing", image=MISSING, language="missing", version="1")
    eventually(lambda: available(kubectl, "test-missing")["status"] == "True")
    sandboxes.apply("imageless", runtime="missing:1")
    eventually(lambda: MISSING in available(kubectl, "test-missing").get("message", ""))
    eventually(lambda: "ErrImageNeverPull" in condition(sandboxes.status("imageless"), "Ready")["message"])
    sandboxes.apply("second", runtime="missing:1")
    eventually(lambda: condition(sandboxes.status("second"), "Ready")["reason"] == "RuntimeUnavailable")
    sandboxes.delete("second")
    sandboxes.delete("imageless")
    environment("test-missing", image=f"{MISSING}2", language="missing", version="1")
    eventually(lambda: available(kubectl, "test-missing")["status"] == "True")


def test_profile_s_cidrs_are_let_through_for_as_long_as_it_is_there(
    installation: Installation, kubectl: Kubectl
) -> None:
    rules = [{"cidr": "192.0.2.0/24", "ports": [{"port": 5432}]}, {"domain": "example.org"}]
    profile = manifest("SandboxProfile", "databases", {"networkPolicies": [{"rules": rules}]})
    kubectl.apply(profile, namespace=installation.system)
    places = [installation.sandboxes, installation.pools]
    for namespace in places:
        policy = eventually(partial(policies, kubectl, namespace))[0]
        assert policy["spec"]["egress"] == [
            {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 5432, "protocol": "TCP"}]}
        ]
        labels = policy["spec"]["podSelector"]["matchLabels"]
        assert labels["llmsafespace.dev/profile"] == "databases"
    kubectl("delete", PROFILE, "databases", "-n", installation.system)
    for namespace in places:
        eventually(partial(without_policies, kubectl, namespace))


def test_policies_of_a_profile_that_went_while_nobody_looked_go_too(
    installation: Installation, kubectl: Kubectl
) -> None:
    rules = [{"cidr": "192.0.2.0/24"}]
    profile = manifest("SandboxProfile", "fleeting", {"networkPolicies": [{"rules": rules}]})
    kubectl.apply(profile, namespace=installation.pools)
    eventually(lambda: policies(kubectl, installation.pools))
    assert policies(kubectl, installation.sandboxes) == [], "a tenant's profile holds in its own namespace"
    (operator,) = installation.operators
    operator.stop()
    kubectl("delete", PROFILE, "fleeting", "-n", installation.pools)
    operator.start()
    eventually(lambda: policies(kubectl, installation.pools) == [])


def test_profile_that_cannot_be_used_says_so(installation: Installation, kubectl: Kubectl) -> None:
    for name, spec, reason in (
        ("classless", {"runtimeClassName": "no-such-class"}, "RuntimeClassNotFound"),
        ("standard", {"networkPolicies": [{"rules": [{"cidr": "0.0.0.0/0"}]}]}, "NameTaken"),
        ("plain", {}, "Valid"),
    ):
        kubectl.apply(manifest("SandboxProfile", name, spec), namespace=installation.sandboxes)
        found = eventually(partial(ready, kubectl, installation, name))
        assert found["reason"] == reason
    assert policies(kubectl, installation.sandboxes) == []


def ready(kubectl: Kubectl, installation: Installation, name: str) -> Manifest:
    found = kubectl.json("get", PROFILE, name, "-n", installation.sandboxes)
    return condition(found.get("status", {}), "Ready")


def policies(kubectl: Kubectl, namespace: str) -> list[Manifest]:
    """Those of profiles."""
    selector = "llmsafespace.dev/component=sandbox-profile"
    return kubectl.items("networkpolicies", namespace, "--selector", selector)


def without_policies(kubectl: Kubectl, namespace: str) -> bool:
    return policies(kubectl, namespace) == []
