"""The operator as a process: killed at any moment, one of two, and asked how it is."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import SANDBOX, WARMPOOL, Sandboxes, condition


@pytest.fixture(scope="module")
def installed(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    runtime("python")
    return install(claim_grace=3.0)


@pytest.fixture
def installation(installed: Installation) -> Iterator[Installation]:
    """One without operators, before and after the test."""
    yield installed
    installed.stop()


async def test_killed_at_any_moment_every_sandbox_gets_one_pod(
    installation: Installation, kubectl: Kubectl
) -> None:
    operator = installation.operator(identity="the same")
    sandboxes = Sandboxes(installation, kubectl)
    sandboxes.pool("pool", 2)
    draw = random.Random(4)
    made = [f"one-of-{number}" for number in range(3)]
    for number, name in enumerate(made):
        sandboxes.apply(name, useWarmPool=number % 2 == 0)
        time.sleep(draw.uniform(0.0, 0.4))  # wherever it is by then
        operator.kill()
        operator.start()
    for name in made:
        status = sandboxes.in_phase(name, "Running")
        assert [pod["metadata"]["name"] for pod in sandboxes.pods(name)] == [status["podName"]]
        info, said = await sandboxes.run(name, "print(6 * 7)")
        assert info.end == "ok"
        assert b"42" in said
    for name in made:
        kubectl("delete", SANDBOX, name, "-n", sandboxes.namespace, "--wait=false")
        operator.kill()
        operator.start()
    kubectl("delete", WARMPOOL, "pool", "-n", sandboxes.pools)
    for name in made:
        eventually(partial(sandboxes.gone, name), what=f"the end of {name}")


def test_second_operator_takes_over(installation: Installation, kubectl: Kubectl) -> None:
    first = installation.operator(identity="first")
    eventually(lambda: holder(kubectl, installation) == "first")
    second = installation.operator(identity="second")
    sandboxes = Sandboxes(installation, kubectl)
    first.kill()
    sandboxes.apply("orphan", useWarmPool=False)
    sandboxes.in_phase("orphan", "Running")
    assert holder(kubectl, installation) == "second"
    first.start()
    assert second.stop() == 0
    eventually(lambda: holder(kubectl, installation) == "first", limit=10, what="a released lease")
    sandboxes.delete("orphan")


def test_cold_starts_are_limited_and_wait_their_turn(installation: Installation, kubectl: Kubectl) -> None:
    installation.operator(max_cold_starts=1)
    sandboxes = Sandboxes(installation, kubectl)
    made = ["first", "second", "third"]
    for name in made:
        sandboxes.apply(name, useWarmPool=False)
    for name in made:
        sandboxes.in_phase(name, "Running")
    kubectl("delete", SANDBOX, *made, "-n", sandboxes.namespace)


def test_a_cold_start_that_is_refused_does_not_hold_up_the_others(
    installation: Installation, kubectl: Kubectl
) -> None:
    installation.operator(max_cold_starts=1)
    sandboxes = Sandboxes(installation, kubectl)
    limits = {"limits": [{"type": "Container", "max": {"memory": "2Gi"}}]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits},
        namespace=sandboxes.namespace,
    )
    sandboxes.apply("refused", useWarmPool=False, resources={"memory": "3Gi"})
    eventually(lambda: condition(sandboxes.status("refused"), "Ready")["reason"] == "PodRefused")
    sandboxes.apply("served", useWarmPool=False)
    sandboxes.in_phase("served", "Running")
    kubectl("delete", SANDBOX, "refused", "served", "-n", sandboxes.namespace)
    kubectl("delete", "limitrange", "small", "-n", sandboxes.namespace)


def test_it_says_how_it_is(installation: Installation) -> None:
    operator = installation.operator()
    assert operator.get("/healthz") == "ok\n"
    eventually(lambda: "leader_election_master_status" in (operator.get("/metrics") or ""))
    metrics = operator.get("/metrics") or ""
    for name in ("workqueue_depth", "rest_client_requests_total", "llmsafespace_sandbox_starts_total"):
        assert name in metrics
    assert operator.stop() == 0


def holder(kubectl: Kubectl, installation: Installation) -> str:
    leases = kubectl.items("leases", installation.system)
    return leases[0]["spec"].get("holderIdentity", "") if leases else ""
