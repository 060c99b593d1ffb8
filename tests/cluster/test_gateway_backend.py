"""Sandboxes over REST that are pods: a real gateway and a real operator on a real cluster."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from llmsafespace_kube.resources.names import made_by_gateway
from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation
from tests.cluster.support_sandboxes import SANDBOX, WARMPOD, Sandboxes, manifest
from tests.conftest import Gateway
from tests.integration.rest_support import Client, is_error

SMALL = {"cpu": "250m", "memory": "256Mi", "ephemeralStorage": "256Mi"}


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    runtime("python")
    made = install(sandbox_retention=5.0, claim_grace=3.0)
    made.operator()
    return made


@pytest.fixture(scope="module")
def gateway(installation: Installation) -> Gateway:
    return installation.gateway()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("ada", "admin")) as made:
        yield made


@pytest.fixture(scope="module")
def pool(installation: Installation, kubectl: Kubectl) -> str:
    """A pool that serves everybody, made with kubectl."""
    spec = {"runtime": "python:3.11", "minSize": 1, "resources": SMALL}
    kubectl.apply(manifest("WarmPool", "shared", spec), namespace=installation.pools)
    return "shared"


@pytest.fixture
def objects(installation: Installation, kubectl: Kubectl) -> Sandboxes:
    return Sandboxes(installation, kubectl)


@pytest.fixture
def warm(pool: str, objects: Sandboxes) -> str:
    """The same pool, full."""
    eventually(lambda: objects.ready(pool), what="a warm pod that is ready")
    return pool


def create(client: Client, **wanted: Any) -> dict[str, Any]:
    answer = client.post("/sandboxes", json={"runtime": "python:3.11", "resources": SMALL, **wanted})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def delete(client: Client, sandbox: str) -> None:
    answer = client.delete(f"/sandboxes/{sandbox}")
    assert answer.status_code == 204, answer.text


def test_a_warm_pod_becomes_somebodys(client: Client, warm: str, objects: Sandboxes) -> None:
    made = create(client, env={"GREETING": "hello"}, files={"a.txt": "text"})
    assert made["start"] == {"kind": "warm", "reason": "", "pool": "shared", "poolOwner": "published"}
    assert made["isolation"]["backend"] == "kubernetes"
    code = "import os; print(os.environ['GREETING'], open('a.txt').read())"
    assert client.execute(made["id"], code)["stdout"] == "hello text\n"

    status = objects.in_phase(made["id"], "Running")
    assert (status["sandboxId"], status["startKind"]) == (made["id"], "warm")
    assert made["id"] in [each["id"] for each in client.get("/sandboxes?status=running").json()["items"]]
    assert client.get(f"/sandboxes/{made['id']}/status").json()["contexts"][0]["id"] == made["kernelId"]

    delete(client, made["id"])
    ended = client.get(f"/sandboxes/{made['id']}").json()
    assert (ended["status"], ended["end"]) == ("ended", "terminated")
    eventually(lambda: objects.gone(made["id"]), what="nothing that is left of it")


def test_variables_that_a_process_needs_from_its_start_are_served_warm(client: Client, warm: str) -> None:
    made = create(client, env={"PYTHONHASHSEED": "7"})
    assert made["start"]["kind"] == "warm"
    assert any("PYTHONHASHSEED" in warning for warning in made["warnings"])
    code = "import os, sys; print(os.environ['PYTHONHASHSEED'], sys.flags.hash_randomization)"
    assert client.execute(made["id"], code)["stdout"].split()[0] == "7"
    delete(client, made["id"])


def test_a_cold_start_says_why(client: Client, objects: Sandboxes) -> None:
    made = create(client, useWarmPool=False, env={"GREETING": "hello"})
    start = {"kind": "cold", "reason": "the request asked for no warm pool"}
    assert made["start"] == {**start, "pool": None, "poolOwner": None}
    assert client.execute(made["id"], "import os; print(os.environ['GREETING'])")["stdout"] == "hello\n"
    assert objects.in_phase(made["id"], "Running")["startReason"] == made["start"]["reason"]
    delete(client, made["id"])
    eventually(lambda: objects.gone(made["id"]), what="nothing that is left of it")


def test_a_version_that_is_not_there_is_served_by_the_nearest(client: Client, warm: str) -> None:
    made = create(client, runtime="python:3.10")
    assert made["runtime"] == "python:3.11"
    assert "python:3.10" in made["warnings"][0]
    delete(client, made["id"])
    is_error(client.post("/sandboxes", json={"runtime": "cobol:1"}), 422, "runtime_unavailable")


def test_the_same_wish_by_two_gateways_is_one_sandbox(
    client: Client, installation: Installation, warm: str
) -> None:
    other = installation.gateway()
    key = client.headers["authorization"].removeprefix("Bearer ")
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    found: list[dict[str, Any]] = []

    def wish(each: Client) -> None:
        body = {"runtime": "python:3.11", "resources": SMALL}
        answer = each.post("/sandboxes", json=body, headers=headers)
        found.append({**answer.json(), "answered": answer.status_code})

    with Client(other.url, key) as second:
        threads = [threading.Thread(target=wish, args=(each,)) for each in (client, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [each["answered"] for each in found] == [201, 201], found
        assert found[0]["id"] == found[1]["id"]
        assert second.execute(found[0]["id"], "print(6 * 7)")["stdout"] == "42\n"
        running = second.get("/sandboxes?status=running").json()["items"]
        assert [each["id"] for each in running] == [found[0]["id"]]
        delete(second, found[0]["id"])
        assert client.get(f"/sandboxes/{found[0]['id']}").json()["end"] == "terminated"


def test_a_sandbox_made_with_kubectl_is_like_any_other(
    client: Client, gateway: Gateway, objects: Sandboxes, warm: str
) -> None:
    key = gateway.key("grace", "developer")
    name = f"by-hand-{secrets.token_hex(4)}"
    objects.apply(name, resources=SMALL, user="grace", idleTimeout=300)
    status = objects.in_phase(name, "Running")
    sandbox = status["sandboxId"]
    with Client(gateway.url, key) as grace:
        eventually(lambda: grace.get(f"/sandboxes/{sandbox}").status_code == 200, what="its record")
        seen = grace.get(f"/sandboxes/{sandbox}").json()
        assert (seen["status"], seen["idleTimeout"], seen["timeout"]) == ("running", 300, 300)
        assert grace.execute(sandbox, "print('adopted')")["stdout"] == "adopted\n"
        headers = {"Authorization": f"Bearer {key}"}
        kernels = grace.get(f"{gateway.url}/api/kernels", headers=headers).json()
        assert [each["id"] for each in kernels] == [seen["kernelId"]]
        objects.delete(name)
        eventually(
            lambda: grace.get(f"/sandboxes/{sandbox}").json()["status"] == "ended",
            what="its end",
        )
        assert grace.get(f"/sandboxes/{sandbox}").json()["end"] == "terminated"
    with Client(gateway.url, gateway.key("mallory", "developer")) as other:
        is_error(other.get(f"/sandboxes/{sandbox}"), 404, "not_found")


def test_a_gateway_that_dies_in_the_middle_loses_nothing(
    client: Client, installation: Installation, warm: str
) -> None:
    dying = installation.gateway()
    key = client.headers["authorization"].removeprefix("Bearer ")
    execution = f"run-{secrets.token_hex(6)}"
    with Client(dying.url, key) as doomed:
        made = create(doomed)
        code = "import time\nfor n in range(20):\n    print(n, flush=True)\n    time.sleep(0.2)"

        def run() -> None:
            body = {"content": code, "executionId": execution}
            with pytest.raises(Exception, match=r".*"):
                doomed.post(f"/sandboxes/{made['id']}/execute", json=body)

        thread = threading.Thread(target=run)
        thread.start()
        path = f"/sandboxes/{made['id']}/executions/{execution}"
        eventually(lambda: client.get(path).status_code == 200, what="an execution that has begun")
        dying.kill()
        thread.join()
    eventually(lambda: client.get(path).json()["status"] != "running", what="its end")
    answer = client.get(path).json()
    assert answer["stdout"] == "".join(f"{n}\n" for n in range(20))
    delete(client, made["id"])


def test_a_sandbox_that_was_never_recorded_is_removed(
    installation: Installation, client: Client, objects: Sandboxes, kubectl: Kubectl, warm: str
) -> None:
    """A claim by a gateway that died before it made the Sandbox: the operator frees the pod."""
    (pod, *_) = objects.ready(warm)
    name = pod["metadata"]["name"]
    claim = {
        "claimId": "sb-" + "0" * 20,
        "sandbox": {"name": "sb-" + "0" * 20, "namespace": installation.sandboxes},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    kubectl(
        "patch",
        WARMPOD,
        name,
        "-n",
        installation.pools,
        "--type=merge",
        "-p",
        json.dumps({"spec": {"claim": claim}}),
    )
    eventually(
        lambda: name not in [each["metadata"]["name"] for each in kubectl.items(WARMPOD, installation.pools)],
        what="a pod that is freed",
    )


def test_the_end_is_the_pods_word(
    client: Client, warm: str, installation: Installation, kubectl: Kubectl
) -> None:
    made = create(client)
    claimed = [
        each["metadata"]["name"]
        for each in kubectl.items(WARMPOD, installation.pools)
        if each["spec"].get("claim", {}).get("claimId") == made["id"]
    ]
    kubectl("delete", "pod", *claimed, "-n", installation.pools, "--wait=false")
    eventually(lambda: client.get(f"/sandboxes/{made['id']}").json()["status"] == "ended", what="an end")
    assert client.get(f"/sandboxes/{made['id']}").json()["end"] == "lost"
    is_error(client.post(f"/sandboxes/{made['id']}/execute", json={"content": "1"}), 410)


@pytest.mark.parametrize("deleted", [WARMPOD, "pods"])
def test_a_sandbox_whose_pod_is_gone_has_ended_once_the_operator_says_so(
    client: Client, warm: str, installation: Installation, objects: Sandboxes, kubectl: Kubectl, deleted: str
) -> None:
    made = create(client)
    objects.in_phase(made["id"], "Running")
    (pod,) = [each["metadata"]["name"] for each in objects.pods(made["id"])]
    (operator,) = installation.operators
    operator.stop()
    kubectl("delete", deleted, pod, "-n", installation.pools, "--timeout=60s")
    kubectl("wait", "--for=delete", f"pod/{pod}", "-n", installation.pools, "--timeout=60s")

    path = f"/sandboxes/{made['id']}"
    kernel = f"{client.base_url.copy_with(path='/api/kernels')}/{made['kernelId']}"
    for answer in (
        client.get(f"{path}/status"),
        client.post(f"{path}/execute", json={"content": "1"}),
        client.get(f"{path}/files"),
        client.post(f"{kernel}/interrupt"),
    ):
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) >= 1
    assert client.get(path).json()["status"] == "running"

    operator.start()
    eventually(lambda: client.get(path).json()["status"] == "ended", what="the operator's word")
    error = is_error(client.post(f"{path}/execute", json={"content": "1"}), 410, "gone")
    assert error["details"] == {"end": "lost"}


def test_a_sandbox_ends_by_itself_when_it_is_idle(client: Client, warm: str) -> None:
    made = create(client, idleTimeout=2)
    eventually(lambda: client.get(f"/sandboxes/{made['id']}").json()["status"] == "ended", what="an end")
    assert client.get(f"/sandboxes/{made['id']}").json()["end"] == "expired"


def test_what_happened_while_no_gateway_ran_is_found(
    client: Client, gateway: Gateway, installation: Installation, objects: Sandboxes, warm: str
) -> None:
    for each in installation.gateways:
        if each is not gateway:
            each.stop()
    lost = create(client)["id"]
    settled = time.monotonic() + 11  # from then on a record is believed to be older than any news
    gateway.stop()
    objects.delete(lost)
    name = f"by-hand-{secrets.token_hex(4)}"
    objects.apply(name, resources=SMALL, useWarmPool=False)
    sandbox = objects.in_phase(name, "Running")["sandboxId"]
    eventually(lambda: time.monotonic() > settled)
    gateway.start()
    assert client.execute(sandbox, "print('found')")["stdout"] == "found\n"
    assert client.get(f"/sandboxes/{lost}").json()["end"] == "lost"
    is_error(client.post(f"/sandboxes/{lost}/execute", json={"content": "1"}), 410)
    delete(client, sandbox)
    eventually(lambda: objects.gone(name), what="nothing that is left of it")


def test_a_lifetime_can_only_be_shortened(
    client: Client, warm: str, installation: Installation, kubectl: Kubectl
) -> None:
    """Kubernetes ends the pod at its deadline, whatever its agent is told."""
    made = create(client, maxLifetime=600)
    path = f"/sandboxes/{made['id']}"
    assert client.patch(path, json={"maxLifetime": 500}).json()["maxLifetime"] == 500
    is_error(client.patch(path, json={"maxLifetime": 501}), 400, "invalid_request")
    found = kubectl.json("get", SANDBOX, made["id"], "-n", installation.sandboxes)
    ends = datetime.fromisoformat(found["metadata"]["annotations"]["llmsafespace.dev/ends-at"])
    assert 480 < (ends - datetime.now(UTC)).total_seconds() < 510  # the operator's clock knows
    delete(client, made["id"])


def test_a_wish_that_no_sandbox_can_be_costs_no_warm_pod(
    client: Client, warm: str, objects: Sandboxes
) -> None:
    before = {each["metadata"]["name"] for each in objects.ready(warm)}
    rules = [{"domain": f"{n}.example.org"} for n in range(129)]
    body = {"runtime": "python:3.11", "resources": SMALL, "networkAccess": {"egress": rules}}
    is_error(client.post("/sandboxes", json=body), 400, "invalid_request")
    assert before <= {each["metadata"]["name"] for each in objects.ready(warm)}


def test_code_of_a_pool_runs_for_those_who_name_it_or_once_it_is_published(
    client: Client, gateway: Gateway, objects: Sandboxes, kubectl: Kubectl
) -> None:
    """A developer's pool must not be what an admin's plain request gets; warm, cold and by kubectl."""
    script = {"name": "sum", "content": "import builtins; builtins.sum = lambda *_: 1337"}
    pool = {
        "name": "own",
        "runtime": "python:3.11",
        "minSize": 1,
        "resources": SMALL,
        "preloadScripts": [script],
    }
    with Client(gateway.url, gateway.key("dora", "developer")) as developer:
        assert developer.post("/warmpools", json=pool).status_code == 201
        is_error(developer.post("/warmpools", json={**pool, "name": "p", "published": True}), 403)
    eventually(lambda: objects.ready("own"), what="a warm pod that is ready")

    plain = create(client, resources={**SMALL, "memory": "255Mi"})
    assert client.execute(plain["id"], "print(sum([1, 2]))")["stdout"] == "3\n"
    named = create(client, warmPool="own")
    assert (named["start"]["kind"], named["start"]["pool"]) == ("warm", "own")
    assert client.execute(named["id"], "print(sum([1, 2]))")["stdout"] == "1337\n"
    for made in (plain, named):
        delete(client, made["id"])

    assert client.patch("/warmpools/own", json={"minSize": 0}).status_code == 200
    eventually(lambda: not objects.ready("own"), what="an empty pool")
    cold = create(client, warmPool="own")
    assert (cold["start"]["kind"], cold["start"]["pool"]) == ("cold", "own")
    assert client.execute(cold["id"], "print(sum([1, 2]))")["stdout"] == "1337\n"
    delete(client, cold["id"])

    is_error(client.post("/sandboxes", json={"runtime": "python:3.11", "warmPool": "absent"}), 404)
    large = {"cpu": "2", "memory": "256Mi", "ephemeralStorage": "256Mi"}
    body = {"runtime": "python:3.11", "warmPool": "own", "resources": large}
    assert "does not fit" in is_error(client.post("/sandboxes", json=body), 400)["message"]
    assert client.delete("/warmpools/own").status_code == 204


def test_pools_are_objects_whoever_makes_them(
    client: Client, pool: str, installation: Installation, kubectl: Kubectl
) -> None:
    listed = {each["name"]: each for each in client.get("/warmpools").json()["items"]}
    assert (listed[pool]["tenant"], listed[pool]["minSize"]) == (None, 1)
    is_error(client.patch(f"/warmpools/{pool}", json={"minSize": 0}), 403, "forbidden")

    body = {"name": "own", "runtime": "python:3.11", "minSize": 0, "maxSize": 2, "resources": SMALL}
    assert client.post("/warmpools", json=body).status_code == 201
    is_error(client.post("/warmpools", json=body), 409, "conflict")
    found = kubectl.json("get", "warmpools.llmsafespace.dev", "own", "-n", installation.pools)["spec"]
    assert (found["maxSize"], found["allowedNamespaces"]) == (2, [installation.sandboxes])
    assert client.patch("/warmpools/own", json={"maxSize": 3}).json()["maxSize"] == 3
    assert client.get("/warmpools/own/status").json()["availablePods"] == 0
    assert client.delete("/warmpools/own").status_code == 204
    is_error(client.get("/warmpools/own"), 404, "not_found")
    is_error(client.post("/warmpools", json={**body, "runtime": "cobol:1"}), 422, "runtime_unavailable")


def test_runtimes_and_profiles_are_the_clusters(
    client: Client, installation: Installation, kubectl: Kubectl
) -> None:
    assert "python:3.11" in [each["id"] for each in client.get("/runtimes").json()["items"]]
    kubectl.apply(
        manifest("SandboxProfile", "high", {"securityLevel": "high", "seccompProfile": "RuntimeDefault"}),
        namespace=installation.system,
    )
    eventually(
        lambda: "As its" in client.get("/profiles/high").json()["description"], what="a profile that is known"
    )
    assert {each["id"] for each in client.get("/profiles").json()["items"]} >= {"standard", "high", "custom"}


def test_nothing_is_left(client: Client, installation: Installation, kubectl: Kubectl) -> None:
    """After all of the above: every Sandbox that a gateway made is gone, or says how it ended."""
    running = client.get("/sandboxes?status=running").json()["items"]
    assert running == []

    def ended() -> bool:
        left = kubectl.items(SANDBOX, installation.sandboxes)
        return all(
            each.get("status", {}).get("end") for each in left if made_by_gateway(each["metadata"]["name"])
        )

    eventually(ended, what="no living Sandbox")
