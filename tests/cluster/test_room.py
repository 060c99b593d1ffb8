"""A full cluster: who cannot be served hears so soon, and warm pods that nobody has give way to who can."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmsafespace import NoRoom, Sandbox
from llmsafespace_protocol.quantities import number
from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import WARMPOOL, Sandboxes, condition, manifest
from tests.conftest import Gateway
from tests.integration.rest_support import Client, is_error

SCHEDULE_TIMEOUT = 15.0
HUGE = {"cpu": "500", "memory": "256Mi", "ephemeralStorage": "256Mi"}
NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture(scope="module")
def priorities(kubectl: Kubectl) -> Iterator[dict[str, str]]:
    """The two PriorityClasses, as the chart makes them."""
    mark = secrets.token_hex(4)
    made = {"priority_class": f"sandboxes-{mark}", "warm_priority_class": f"warm-{mark}"}
    for name, value in ((made["priority_class"], 100), (made["warm_priority_class"], 0)):
        kubectl.apply(
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
                "preemptionPolicy": "Never",
            }
        )
    yield made
    kubectl("delete", "priorityclasses", *made.values())


@pytest.fixture(scope="module")
def installation(
    install: Callable[..., Installation], runtime: Callable[[str], str], priorities: dict[str, str]
) -> Installation:
    runtime("python")
    made = install(sandbox_retention=5.0, claim_grace=3.0, schedule_timeout=SCHEDULE_TIMEOUT, **priorities)
    made.operator()
    return made


@pytest.fixture(scope="module")
def client(installation: Installation) -> Iterator[Client]:
    gateway: Gateway = installation.gateway()
    with Client(gateway.url, gateway.key("ada", "admin")) as made:
        yield made


@pytest.fixture
def objects(installation: Installation, kubectl: Kubectl) -> Sandboxes:
    return Sandboxes(installation, kubectl)


def wanted(resources: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"runtime": "python:3.11", "resources": resources, **more}


def events(kubectl: Kubectl, namespace: str) -> set[str]:
    found = kubectl.items("events.events.k8s.io", namespace)
    return {f"{one['reason']}: {one.get('note', '')}" for one in found}


def left(objects: Sandboxes, kubectl: Kubectl) -> list[str]:
    """What is in the namespace of Sandboxes."""
    found = kubectl.items("sandboxes.llmsafespace.dev,pods,secrets", objects.namespace)
    return [f"{one['kind']} {one['metadata']['name']}" for one in found]


def test_what_no_node_takes_is_refused_in_the_scheduler_s_words(
    client: Client, objects: Sandboxes, kubectl: Kubectl
) -> None:
    before = client.get("/sandboxes?status=running").json()
    began = time.monotonic()
    answer = client.post("/sandboxes", json=wanted(HUGE))
    took = time.monotonic() - began
    error = is_error(answer, 503, "service_unavailable")
    assert "Insufficient cpu" in error["message"]
    assert error["details"] == {"reason": "Unschedulable"}
    assert int(answer.headers["retry-after"]) >= 1
    assert took < SCHEDULE_TIMEOUT + 10
    eventually(lambda: not left(objects, kubectl), what="nothing that is left of it")
    assert client.get("/sandboxes?status=running").json() == before
    told = eventually(lambda: [one for one in events(kubectl, objects.namespace) if "Insufficient" in one])
    assert {one.partition(":")[0] for one in told} >= {"Unschedulable", "Ended"}


def test_the_sdk_says_so_too(client: Client) -> None:
    url = str(client.base_url).split("/api/")[0]
    key = client.headers["authorization"].removeprefix("Bearer ")
    with pytest.raises(NoRoom, match="Insufficient cpu") as refused:
        Sandbox("python:3.11", api_url=url, api_key=key, resources=HUGE)
    assert refused.value.retry_after


def test_a_create_streams_what_it_waits_for(client: Client) -> None:
    with client.stream("POST", "/sandboxes", json=wanted(HUGE), headers=NDJSON) as answer:
        assert answer.status_code == 200
        lines = [json.loads(line) for line in answer.iter_lines()]
    *progress, last = lines
    assert any("Insufficient cpu" in line["progress"]["message"] for line in progress)
    assert last["error"]["details"] == {"reason": "Unschedulable"}
    small = {"cpu": "100m", "memory": "256Mi", "ephemeralStorage": "256Mi"}
    with client.stream("POST", "/sandboxes", json=wanted(small), headers=NDJSON) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert lines[0]["progress"]["reason"] == "Cold"
    client.delete(f"/sandboxes/{lines[-1]['sandbox']['id']}")


def test_warm_pods_give_way_and_claimed_ones_do_not(
    client: Client, objects: Sandboxes, kubectl: Kubectl
) -> None:
    """A pool fills the node: one of its pods is somebody's, the others go for who needs their room."""
    node = kubectl.json("get", "nodes", "-l", "!type")["items"][0]["status"]["allocatable"]["cpu"]
    share = f"{int(number(node) * 1000 * 0.3)}m"
    resources = {"cpu": share, "memory": "128Mi", "ephemeralStorage": "128Mi"}
    spec = {"runtime": "python:3.11", "minSize": 3, "resources": resources}
    kubectl.apply(manifest("WarmPool", "greedy", spec), namespace=objects.pools)
    eventually(lambda: len(objects.ready("greedy")) == 3, what="a full pool")
    claimed = client.post("/sandboxes", json=wanted(resources)).json()
    assert claimed["start"]["kind"] == "warm"

    large = {**resources, "cpu": f"{int(number(node) * 1000 * 0.5)}m"}
    answer = client.post("/sandboxes", json=wanted(large))
    assert answer.status_code == 201, answer.text
    assert answer.json()["start"]["kind"] == "cold"
    pods = {one["metadata"]["name"]: one["spec"] for one in kubectl.items("pods", objects.pools)}
    assert all(spec["priority"] == 0 and spec["preemptionPolicy"] == "Never" for spec in pods.values())
    cold = kubectl.json("get", "pod", answer.json()["id"], "-n", objects.namespace)
    assert cold["spec"]["priority"] == 100
    assert client.execute(claimed["id"], "print(6 * 7)")["stdout"] == "42\n"

    def crowded() -> bool:
        pool = kubectl.json("get", WARMPOOL, "greedy", "-n", objects.pools)
        filled = condition(pool["status"], "Filled")
        return bool(filled["reason"] == "Unschedulable" and "Insufficient cpu" in filled["message"])

    eventually(crowded, what="a condition that says why the pool does not grow")
    assert len(kubectl.items("warmpods.llmsafespace.dev", objects.pools)) <= 4
    for made in (answer.json(), claimed):
        client.delete(f"/sandboxes/{made['id']}")
    eventually(lambda: len(objects.ready("greedy")) == 3, what="a pool that is full again")
    kubectl("delete", WARMPOOL, "greedy", "-n", objects.pools)
