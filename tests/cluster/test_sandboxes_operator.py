"""Sandboxes that somebody makes with kubectl: the operator starts, binds, ends and forgets them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from llmsafespace_kube.claims import binding
from llmsafespace_kube.resources.names import AGENT_PORT, SANDBOX_ID
from llmsafespace_protocol.requests import BindRequest
from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import SANDBOX, WARMPOD, WARMPOOL, Sandboxes, condition, manifest

# As the original has it, but for its namespace.
ORIGINAL = """
apiVersion: llmsafespace.dev/v1
kind: Sandbox
metadata:
  name: sandbox-12345
spec:
  runtime: python:3.10
  resources:
    cpu: "1"
    memory: "1Gi"
  timeout: 300
  user: "user-123"
  securityLevel: "standard"
  securityContext:
    runAsNonRoot: true
    seccompProfile:
      type: RuntimeDefault
  useWarmPool: true
status:
  phase: Running
  startTime: "2023-07-01T10:00:00Z"
  endpoint: "sandbox-12345.agent-sandboxes.svc.cluster.local"
  warmPodRef:
    name: "python-pool-abc123"
    namespace: "warm-pools"
"""

UNQUOTED = """
apiVersion: llmsafespace.dev/v1
kind: Sandbox
metadata:
  name: unquoted
spec:
  runtime: python:3.11
  resources:
    cpu: 1
    memory: 268435456
"""


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    """One with an operator that is quick to give up and to forget."""
    runtime("python")
    made = install(sandbox_retention=4.0, claim_grace=3.0, start_timeout=15.0)
    made.operator()
    return made


@pytest.fixture(scope="module")
def sandboxes(installation: Installation, kubectl: Kubectl) -> Sandboxes:
    found = Sandboxes(installation, kubectl)
    found.pool("pool", 2)
    return found


def test_original_manifest_runs_in_a_warm_pod(
    sandboxes: Sandboxes, installation: Installation, kubectl: Kubectl
) -> None:
    sandboxes.pool("large", 1, {"cpu": "1", "memory": "1Gi"})
    kubectl.apply(ORIGINAL, namespace=sandboxes.namespace)
    status = sandboxes.in_phase("sandbox-12345", "Running")
    assert status["startKind"] == "warm"
    assert status["warmPodRef"]["namespace"] == installation.pools
    assert status["endpoint"] == f"{installation.settings.gateway_url}/api/v1/sandboxes/{status['sandboxId']}"
    assert condition(status, "Warm")["status"] == "True"
    assert "python:3.10 is not available here" in condition(status, "Ready")["message"]
    warm = kubectl.json("get", WARMPOD, status["warmPodRef"]["name"], "-n", installation.pools)
    assert warm["status"]["phase"] == "Assigned"
    assert warm["status"]["assignedTo"]["name"] == "sandbox-12345"
    (pod,) = sandboxes.pods("sandbox-12345")
    assert pod["metadata"]["labels"][SANDBOX_ID] == status["sandboxId"]
    assert pod["spec"]["activeDeadlineSeconds"] >= 86400 + 60
    kubectl("delete", WARMPOOL, "large", "-n", sandboxes.pools)
    sandboxes.delete("sandbox-12345")
    eventually(lambda: sandboxes.gone("sandbox-12345"))


def test_a_secret_of_the_same_name_is_left_alone(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    kubectl("create", "secret", "generic", "regcred", "--from-literal=a=b", "-n", sandboxes.namespace)
    before = kubectl.json("get", "secret", "regcred", "-n", sandboxes.namespace)
    sandboxes.apply("regcred", useWarmPool=False)
    sandboxes.in_phase("regcred", "Running")
    sandboxes.delete("regcred")
    eventually(lambda: sandboxes.gone("regcred"))
    assert kubectl.json("get", "secret", "regcred", "-n", sandboxes.namespace) == before


async def test_numbers_in_manifests_need_no_quotes(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    sandboxes.pool("plain", 1, {"cpu": 1, "memory": 268435456})
    kubectl.apply(UNQUOTED, namespace=sandboxes.namespace)
    status = sandboxes.in_phase("unquoted", "Running")
    assert status["warmPodRef"]["name"].startswith("plain-")
    (pod,) = sandboxes.pods("unquoted")
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["cpu"], limits["memory"]) == ("1", "268435456")
    info, said = await sandboxes.run("unquoted", "print(6 * 7)")
    assert info.end == "ok"
    assert b"42" in said
    kubectl("delete", WARMPOOL, "plain", "-n", sandboxes.pools)
    sandboxes.delete("unquoted")
    eventually(lambda: sandboxes.gone("unquoted"))


async def test_sandbox_runs_code_and_is_bound_to_nobody_else(sandboxes: Sandboxes) -> None:
    sandboxes.apply("used")
    status = sandboxes.in_phase("used", "Running")
    info, said = await sandboxes.run("used", "print(6 * 7)")
    assert info.end == "ok"
    assert b"42" in said
    token = sandboxes.token("used")
    with pytest.raises(binding.BindRefused, match="bound by another claim"):
        await binding.bind(status["podIP"], AGENT_PORT, token, BindRequest("c", "sb-thief", "k"))
    sandboxes.delete("used")


def test_what_a_gateway_claimed_is_told_everywhere(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    name = "sb-0123456789abcdef0123"
    warm_pod = eventually(lambda: sandboxes.ready("pool"))[0]["metadata"]["name"]
    claim = {"claimId": name, "sandbox": {"name": name, "namespace": sandboxes.namespace}, "time": now()}
    patch = json.dumps({"spec": {"claim": claim}})
    kubectl("patch", WARMPOD, warm_pod, "-n", sandboxes.pools, "--type", "merge", "-p", patch)
    sandboxes.apply(name, warmPod={"name": warm_pod, "namespace": sandboxes.pools, "claimId": name})
    status = sandboxes.in_phase(name, "Running")
    assert (status["sandboxId"], status["startKind"], status["podName"]) == (name, "warm", warm_pod)
    assert status["podIP"]
    eventually(lambda: sandboxes.pods(name)[0]["spec"]["activeDeadlineSeconds"])
    sandboxes.delete(name)
    eventually(lambda: sandboxes.gone(name))


async def test_cold_start_of_a_gateway_is_not_bound_either(sandboxes: Sandboxes) -> None:
    name = "sb-00000000000000000000"
    sandboxes.apply(name, useWarmPool=False)
    status = sandboxes.in_phase(name, "Running")
    assert (status["startKind"], status["startReason"]) == ("cold", "no warm pool was asked for")
    await binding.bind(status["podIP"], AGENT_PORT, sandboxes.token(name), BindRequest(name, name, "k"))
    sandboxes.delete(name)


def test_cold_start_says_why(sandboxes: Sandboxes) -> None:
    sandboxes.apply("cold", resources={"cpu": "250m", "memory": "1100Mi"})
    status = sandboxes.in_phase("cold", "Running")
    assert status["startKind"] == "cold"
    assert status["startReason"].startswith("more resources than those of pool")
    assert condition(status, "Warm")["message"] == status["startReason"]
    (pod,) = sandboxes.pods("cold")
    assert (pod["metadata"]["name"], pod["metadata"]["namespace"]) == ("cold", sandboxes.namespace)
    sandboxes.delete("cold")
    eventually(lambda: sandboxes.gone("cold"))


def test_runtime_that_is_not_there_is_named_until_it_fails(sandboxes: Sandboxes) -> None:
    sandboxes.apply("cobol", runtime="cobol:85")
    words = eventually(lambda: condition(sandboxes.status("cobol"), "Ready")["message"])
    assert "there is no runtime for the language 'cobol'" in words
    assert sandboxes.status("cobol").get("phase", "Pending") == "Pending"
    status = sandboxes.in_phase("cobol", "Failed")
    assert status["end"] == "failed"
    assert words in status["message"]
    eventually(lambda: sandboxes.gone("cobol"), what="an ended Sandbox to be forgotten")


def test_profile_that_comes_later_is_waited_for(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    sandboxes.apply("strict", profileRef={"name": "strict"})
    eventually(lambda: condition(sandboxes.status("strict"), "Ready")["reason"] == "ProfileNotFound")
    kubectl.apply(manifest("SandboxProfile", "strict", {}), namespace=sandboxes.namespace)
    assert sandboxes.in_phase("strict", "Running")["startKind"] == "cold"
    sandboxes.delete("strict")


def test_scheduler_s_words_are_passed_on(sandboxes: Sandboxes) -> None:
    sandboxes.apply("huge", resources={"cpu": "500", "memory": "1Gi"})
    eventually(lambda: "Insufficient cpu" in condition(sandboxes.status("huge"), "Ready")["message"])
    assert sandboxes.status("huge")["phase"] == "Creating"
    status = sandboxes.in_phase("huge", "Failed")
    assert "Insufficient cpu" in status["message"]
    eventually(lambda: sandboxes.pods("huge") == [])


def test_what_the_api_server_refuses_is_passed_on(sandboxes: Sandboxes) -> None:
    """There is no such runtime class, so no pod can be made."""
    sandboxes.kubectl.apply(
        manifest("SandboxProfile", "odd", {"runtimeClassName": "no-such-class"}),
        namespace=sandboxes.namespace,
    )
    sandboxes.apply("refused", profileRef={"name": "odd"})
    words = {"PodRefused", "RuntimeClassNotFound"}  # whoever finds out first
    eventually(lambda: condition(sandboxes.status("refused"), "Ready")["reason"] in words)
    assert "no-such-class" in condition(sandboxes.status("refused"), "Ready")["message"]
    sandboxes.delete("refused")


@pytest.mark.parametrize("warm", [True, False])
def test_lifetime_ends_as_expired_and_is_forgotten(sandboxes: Sandboxes, warm: bool) -> None:
    name = f"short-{warm}".lower()
    sandboxes.apply(name, maxLifetime=3, useWarmPool=warm)
    status = sandboxes.in_phase(name, "Terminated")
    assert status["end"] == "expired"
    assert "endTime" in status
    eventually(lambda: sandboxes.gone(name))


async def test_a_lifetime_ends_although_the_agent_does_not_end_it(sandboxes: Sandboxes) -> None:
    """Its agent was told of no limit, as one that code has stopped; its code starts processes as it can."""
    name = "sb-11111111111111111111"
    sandboxes.apply(name, useWarmPool=False, maxLifetime=3)
    status = sandboxes.in_phase(name, "Running")
    await binding.bind(status["podIP"], AGENT_PORT, sandboxes.token(name), BindRequest(name, name, "k"))
    spin = "import subprocess; print(len([subprocess.Popen(['sleep', '1000']) for _ in range(20)]))"
    info, said = await sandboxes.run(name, spin)
    assert (info.end, b"20" in said) == ("ok", True)
    assert sandboxes.in_phase(name, "Terminated")["end"] == "expired"
    eventually(lambda: sandboxes.pods(name) == [], what="the end of its pod, and of all in it")


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(("end", "phase"), [("oom", "Failed"), ("terminated", "Terminated")])
async def test_agent_s_word_for_the_end_counts(
    sandboxes: Sandboxes, warm: bool, end: str, phase: str
) -> None:
    name = f"{end}-{warm}".lower()
    sandboxes.apply(name, useWarmPool=warm)
    sandboxes.in_phase(name, "Running")
    await sandboxes.call(name, "shutdown", {"end": end})
    assert sandboxes.in_phase(name, phase)["end"] == end
    eventually(lambda: sandboxes.pods(name) == [])


@pytest.mark.parametrize("warm", [True, False])
def test_pod_that_is_deleted_is_a_lost_sandbox(sandboxes: Sandboxes, kubectl: Kubectl, warm: bool) -> None:
    name = f"podless-{warm}".lower()
    sandboxes.apply(name, useWarmPool=warm)
    status = sandboxes.in_phase(name, "Running")
    kubectl("delete", "pod", status["podName"], "-n", status["podNamespace"])
    ended = sandboxes.in_phase(name, "Failed")
    assert (ended["end"], ended["message"]) == ("lost", "its pod was deleted")
    eventually(lambda: sandboxes.gone(name))


def test_warm_pod_that_is_deleted_is_a_lost_sandbox(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    sandboxes.apply("bereft")
    status = sandboxes.in_phase("bereft", "Running")
    kubectl("delete", WARMPOD, status["warmPodRef"]["name"], "-n", sandboxes.pools)
    assert sandboxes.in_phase("bereft", "Failed")["end"] == "lost"
    eventually(lambda: sandboxes.gone("bereft"))


def test_deletion_in_any_order_leaves_nothing(sandboxes: Sandboxes, kubectl: Kubectl) -> None:
    sandboxes.apply("one")
    sandboxes.apply("two", useWarmPool=False)
    sandboxes.apply("three", runtime="cobol")
    one, two = sandboxes.in_phase("one", "Running"), sandboxes.in_phase("two", "Running")
    for resource, names_, namespace in (
        ("pod", [one["podName"]], sandboxes.pools),
        (SANDBOX, ["one", "two", "three"], sandboxes.namespace),
        (WARMPOD, [one["podName"]], sandboxes.pools),
        ("secret", [two["podName"]], sandboxes.namespace),
    ):
        kubectl("delete", resource, *names_, "-n", namespace, "--wait=false", "--ignore-not-found")
    for name in ("one", "two", "three"):
        eventually(partial(sandboxes.gone, name), what=f"the end of {name}")


def test_deleted_before_it_ran_leaves_nothing(sandboxes: Sandboxes) -> None:
    for number in range(3):
        name = f"hasty-{number}"
        sandboxes.apply(name, useWarmPool=number == 0)
        sandboxes.delete(name)
        eventually(partial(sandboxes.gone, name))


def test_name_may_be_used_again_at_once(sandboxes: Sandboxes) -> None:
    """The pod and the Secret of its predecessor may still be there."""
    for _ in range(2):
        sandboxes.apply("again", useWarmPool=False)
        sandboxes.in_phase("again", "Running")
        sandboxes.delete("again")


def now() -> str:
    return datetime.now(UTC).isoformat()
