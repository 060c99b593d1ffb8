"""What of runtimes and profiles is decided without a cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.conditions import condition
from llmsafespace_kube.resources.kubernetes import (
    Container,
    ContainerState,
    ContainerStatus,
    ContainerWaiting,
    Metadata,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
)
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    NetworkPolicyRules,
    NetworkRule,
    PortRule,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    RuntimeEnvironmentStatus,
    SandboxProfile,
    SandboxProfileSpec,
)
from llmsafespace_operator.environments import policies
from llmsafespace_operator.environments.verdict import MEMORY, allowed, judge

NOW = datetime.now(UTC)
IMAGE = "registry.example.org:5000/sandboxes/python:3.11-2"
DIGEST = "@sha256:" + "0123456789abcdef" * 4
SETTINGS = Settings(system_namespace="system", key_file="key", gateway_url="http://gateway")


def environment(image: str = IMAGE, language: str = "python") -> RuntimeEnvironment:
    return RuntimeEnvironment(Metadata(name="one"), RuntimeEnvironmentSpec(image, language))


def pod(*, waiting: str = "", ready: bool = False, image: str = IMAGE, pool: bool = False) -> Pod:
    state = ContainerState(waiting=ContainerWaiting(waiting, "no such image") if waiting else None)
    conditions = [PodCondition("Ready", "True")] if ready else []
    status = PodStatus(
        phase="Running" if ready else "Pending",
        pod_ip="10.0.0.1" if ready else "",
        conditions=conditions,
        container_statuses=[ContainerStatus(state=state)],
    )
    labels = {names.POOL: "pool"} if pool else {}
    return Pod(Metadata(name="pod", labels=labels), PodSpec(containers=[Container(image)]), status)


class TestRuntimes:
    @pytest.mark.parametrize("image", [IMAGE, f"python{DIGEST}", f"{IMAGE}{DIGEST}", "localhost/a/b_c:dev"])
    def test_pinned_image_is_available(self, image: str) -> None:
        assert judge(environment(image), [], NOW).available
        assert allowed([environment(image)]) == [image]

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            ("python", "ImageNotPinned"),
            ("python:latest", "ImageNotPinned"),
            ("registry.example.org:5000/python", "ImageNotPinned"),
            ("Python:1", "InvalidImage"),
            ("python:1 --privileged", "InvalidImage"),
            ("python:1\nother:2", "InvalidImage"),
            ("python@sha256:123", "InvalidImage"),
            ("../python:1", "InvalidImage"),
        ],
    )
    def test_other_image_is_neither_available_nor_admitted(self, image: str, reason: str) -> None:
        verdict = judge(environment(image), [], NOW)
        assert (verdict.available, verdict.reason) == (False, reason)
        assert allowed([environment(image), environment()]) == [IMAGE]

    def test_language_is_one_that_can_be_asked_for(self) -> None:
        assert judge(environment(language="c++"), [], NOW).available
        assert judge(environment(language="two words"), [], NOW).reason == "InvalidLanguage"

    def test_image_that_cannot_be_pulled_takes_the_runtime_away_while_pods_say_so(self) -> None:
        verdict = judge(environment(), [pod(waiting="ImagePullBackOff")], NOW)
        assert (verdict.available, verdict.reason) == (False, "ImageUnusable")
        assert "ImagePullBackOff: no such image" in verdict.message
        assert judge(environment(), [], NOW).available

    def test_it_stays_away_for_a_while_when_those_pods_are_gone_unless_one_works(self) -> None:
        troubled = judge(environment(), [pod(waiting="ErrImagePull")], NOW)
        noted = condition("Available", False, troubled.reason, troubled.message, now=NOW, generation=1)
        known = msgspec.structs.replace(
            environment(),
            metadata=Metadata(name="one", generation=1),
            status=RuntimeEnvironmentStatus(False, NOW, [noted]),
        )
        assert judge(known, [], NOW) == troubled
        assert judge(known, [pod()], NOW) == troubled
        assert judge(known, [pod(ready=True)], NOW).available
        assert judge(known, [], NOW + timedelta(seconds=MEMORY)).available
        anew = msgspec.structs.replace(known, metadata=Metadata(name="one", generation=2))
        assert judge(anew, [], NOW).available

    def test_one_pod_that_works_is_enough(self) -> None:
        assert judge(environment(), [pod(waiting="ErrImagePull"), pod(ready=True)], NOW).available

    def test_pods_of_other_images_say_nothing(self) -> None:
        assert judge(environment(), [pod(waiting="ErrImagePull", image="other:1")], NOW).available

    def test_sandbox_whose_own_wishes_keep_it_from_starting_takes_nothing_from_others(self) -> None:
        assert judge(environment(), [pod(waiting="CreateContainerError")], NOW).available
        assert not judge(environment(), [pod(waiting="CreateContainerError", pool=True)], NOW).available


def profile(namespace: str, *rules: NetworkRule) -> SandboxProfile:
    spec = SandboxProfileSpec(network_policies=[NetworkPolicyRules(rules=list(rules))])
    return SandboxProfile(Metadata(name="high", namespace=namespace), spec)


class TestPolicies:
    def test_cidrs_become_egress_rules_and_domains_do_not(self) -> None:
        found = policies.policy(
            profile(
                "system",
                NetworkRule(cidr="10.1.0.0/16", ports=[PortRule(5432)]),
                NetworkRule(cidr="10.2.0.0/16"),
                NetworkRule(domain="example.org"),
            )
        )
        assert found["spec"]["egress"] == [
            {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 5432, "protocol": "TCP"}]},
            {"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]},
        ]
        assert found["spec"]["podSelector"]["matchLabels"][names.PROFILE] == "high"
        assert found["spec"]["policyTypes"] == ["Egress"]

    def test_only_the_system_s_profiles_hold_everywhere(self) -> None:
        assert policies.namespaces(profile("system"), SETTINGS) == {"agent-sandboxes", "warm-pools"}
        assert policies.namespaces(profile("warm-pools"), SETTINGS) == {"warm-pools"}
        assert policies.namespaces(profile("elsewhere"), SETTINGS) == set()

    def test_policies_name_their_profile(self) -> None:
        assert policies.profile_of(policies.policy_name(("a-b", "c.d"))) == ("a-b", "c.d")

    def test_bad_cidr_is_named(self) -> None:
        assert policies.bad_cidr(profile("system", NetworkRule(cidr="10.0.0.0/8"))) is None
        assert "10.0.0.1/8" in str(policies.bad_cidr(profile("system", NetworkRule(cidr="10.0.0.1/8"))))
