"""Who cannot prove a pod's token gets nothing of it, is not bound, and reads nothing: with real pods."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmsafespace_agent.server import certificate
from llmsafespace_kube.claims import agents, tokens
from llmsafespace_kube.claims.binding import bind
from llmsafespace_kube.resources.names import AGENT_PORT
from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.proof import Challenge, Hello, ProofError, prove_as_gateway
from llmsafespace_protocol.requests import BindRequest, OpenExecution, OpenRpc, Request, Status
from tests.cluster.support import LIMIT, Kubectl, eventually
from tests.cluster.support_processes import Installation, Operator
from tests.cluster.support_sandboxes import WARMPOD, Sandboxes, ask
from tests.cluster.support_wire import Impostor, captured, connect, frames, insist, send_again, tapped
from tests.conftest import Gateway
from tests.integration.rest_support import Client, is_error

SMALL = {"cpu": "250m", "memory": "256Mi", "ephemeralStorage": "256Mi"}
POOL = "pair"
NOT_OURS = "does not hold this sandbox's token"


@dataclass(frozen=True)
class Pod:
    """A warm pod that is ready."""

    name: str
    address: str
    token: str

    async def status(self) -> Status:
        answer = await ask(self.address, self.token, "status", {})
        return msgspec.json.decode(answer.result, type=Status)


@pytest.fixture(scope="module")
def installation(install: Callable[..., Installation], runtime: Callable[[str], str]) -> Installation:
    runtime("python")
    return install(claim_grace=3.0)


@pytest.fixture(scope="module")
def operator(installation: Installation) -> Operator:
    return installation.operator()


@pytest.fixture(scope="module")
def gateway(installation: Installation, operator: Operator) -> Gateway:
    return installation.gateway()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("ada")) as made:
        yield made


@pytest.fixture(scope="module")
def objects(installation: Installation, operator: Operator, kubectl: Kubectl) -> Sandboxes:
    made = Sandboxes(installation, kubectl)
    made.pool(POOL, 2, SMALL)
    return made


@pytest.fixture
def pods(installation: Installation, objects: Sandboxes, operator: Operator) -> Iterator[list[Pod]]:
    """Two that are ready, and that no operator looks after during the test. Afterwards they go."""
    eventually(lambda: len(objects.ready(POOL)) == 2, what="two warm pods")
    key = Path(installation.settings.key_file).read_bytes().strip()
    operator.stop()
    made = [
        Pod(
            each["metadata"]["name"],
            each["status"]["podIP"],
            tokens.agent_token(key, each["metadata"]["uid"]),
        )
        for each in objects.ready(POOL)
    ]
    yield made
    names = [pod.name for pod in made]
    objects.kubectl("delete", WARMPOD, *names, "-n", objects.pools, "--ignore-not-found", "--wait=false")
    operator.start()


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, bytes]:
    """A certificate as agents have it."""
    return certificate.finish(certificate.begin(), str(tmp_path_factory.mktemp("forged")))


async def test_the_token_of_another_pod_and_none_open_nothing(pods: list[Pod]) -> None:
    mine, other = pods
    with pytest.raises(ProofError, match=NOT_OURS):
        await agents.dial(mine.address, AGENT_PORT, other.token, OpenRpc())
    for token in (bytes.fromhex(other.token), secrets.token_bytes(32), b""):
        for wish in (OpenRpc(), OpenExecution(execution="stolen", code="print(1)")):
            assert await insist(mine.address, token, wish) == []
    assert (await mine.status()).state == "ready"


async def test_a_bind_is_once_whatever_is_sent_afterwards(pods: list[Pod]) -> None:
    pod, _ = pods
    wish = BindRequest("claim", "sb-" + secrets.token_hex(10), str(uuid.uuid4()), env={"WHOSE": "first"})
    first = await bind(pod.address, AGENT_PORT, pod.token, wish)
    again = await bind(pod.address, AGENT_PORT, pod.token, wish)
    assert (first.state, first.sandbox_id) == ("bound", wish.sandbox_id)
    assert (again.bound_at, again.sandbox_id) == (first.bound_at, first.sandbox_id)
    assert [each.id for each in again.contexts] == [wish.context_id]

    for changes in (
        {"claim_id": "another"},
        {"sandbox_id": "sb-" + secrets.token_hex(10)},
        {"context_id": str(uuid.uuid4())},
        {"env": {"WHOSE": "second"}},
        {"egress_token": "another"},
    ):
        await conflicts(pod, msgspec.structs.replace(wish, **changes))
    assert (await pod.status()).bound_at == first.bound_at


async def test_what_was_sent_on_another_connection_proves_nothing(pods: list[Pod]) -> None:
    pod, _ = pods
    stream = await connect(pod.address)
    await prove_as_gateway(stream, bytes.fromhex(pod.token), msgspec.to_builtins(OpenRpc()))
    await stream.next_frame()
    wish = BindRequest("claim", "sb-" + secrets.token_hex(10), str(uuid.uuid4()))
    call = Request(1, "bind", msgspec.Raw(msgspec.json.encode(wish)))
    stream.send(FrameKind.JSON, msgspec.json.encode(call))
    assert b'"bound"' in (await stream.next_frame())[1]
    stream.close()
    (challenge,) = await send_again(pod.address, stream.sent)
    assert msgspec.json.decode(challenge, type=Challenge).proof

    async with tapped(pod.address) as (port, heard):
        (await agents.dial("127.0.0.1", port, pod.token, OpenRpc())).close()
    reader, writer = await asyncio.open_connection(pod.address, AGENT_PORT)
    writer.write(bytes(heard))
    async with asyncio.timeout(LIMIT):
        await reader.read()  # to its end: the agent hangs up on it
    writer.close()
    assert (await pod.status()).sandbox_id == wish.sandbox_id


@pytest.mark.parametrize("impostor", ["passes it on to the true agent", "has the token of another pod"])
async def test_no_impostor_is_bound(
    client: Client,
    pods: list[Pod],
    objects: Sandboxes,
    forged: tuple[ssl.SSLContext, bytes],
    impostor: str,
) -> None:
    async with AsyncExitStack() as stack:
        impostors = []
        for pod, other in zip(pods, reversed(pods), strict=True):
            how = {"behind": pod.address} if impostor.startswith("passes") else {"token": other.token}
            impostors.append(await stack.enter_async_context(Impostor(forged, **how)))
            move(objects, pod, impostors[-1].address)
        await asyncio.to_thread(is_refused, client)
        heard = [frames(each) for impostor in impostors for each in impostor.heard]
        assert heard
        for (hello,) in heard:  # and nothing else: neither a proof nor what a sandbox is bound with
            assert msgspec.json.decode(hello, type=Hello, strict=True).nonce
    assert [(await pod.status()).state for pod in pods] == ["ready", "ready"]


async def test_a_pod_that_is_another_is_not_bound(
    client: Client, pods: list[Pod], objects: Sandboxes
) -> None:
    for pod, other in zip(pods, reversed(pods), strict=True):
        move(objects, pod, other.address)
    await asyncio.to_thread(is_refused, client)
    assert [(await pod.status()).state for pod in pods] == ["ready", "ready"]


async def test_a_sandbox_that_is_somebodys_is_bound_to_nobody_else(
    client: Client, objects: Sandboxes
) -> None:
    await asyncio.to_thread(eventually, lambda: objects.ready(POOL))
    sandbox = create(client, env={"WHOSE": "ada's"})
    status = objects.in_phase(sandbox, "Running")
    pod = Pod(sandbox, status["podIP"], objects.token(sandbox))
    wish = BindRequest(sandbox, sandbox, str(uuid.uuid4()), env={"WHOSE": "mallory's"})
    await conflicts(pod, wish)
    await conflicts(pod, msgspec.structs.replace(wish, claim_id="another"))
    said = await asyncio.to_thread(client.execute, sandbox, "import os; print(os.environ['WHOSE'])")
    assert said["stdout"] == "ada's\n"
    client.delete(f"/sandboxes/{sandbox}")


def test_nothing_of_a_sandbox_can_be_read_on_the_way(
    client: Client, gateway: Gateway, objects: Sandboxes
) -> None:
    in_env, in_code, said = (secrets.token_hex(16) for _ in range(3))
    eventually(lambda: objects.ready(POOL))
    try:
        with captured() as capture:
            sandbox = create(client, env={"IN_ENV": in_env})
            code = f"# {in_code}\nimport os\nprint('{said[::-1]}'[::-1], os.environ['IN_ENV'], flush=True)"
            assert client.execute(sandbox, code)["stdout"] == f"{said} {in_env}\n"
    except PermissionError:
        pytest.skip("only root may capture packets")
    address, token = objects.status(sandbox)["podIP"], objects.token(sandbox)
    on_the_way, in_front = capture.at(address, AGENT_PORT), capture.at("127.0.0.1", gateway.port)
    secret = [text.encode() for text in (in_env, in_code, said)]
    for text in secret:  # the capture would have seen it: it is plain HTTP in front of the gateway
        assert any(text in data for data in in_front)
    assert any(b"\x17\x03\x03" in data for data in on_the_way), "no TLS to the agent was seen"
    assert sum(map(len, on_the_way)) > 1000
    for text in (*secret, token.encode(), bytes.fromhex(token), b"IN_ENV", sandbox.encode()):
        assert not any(text in data for data in on_the_way)
    client.delete(f"/sandboxes/{sandbox}")


async def conflicts(pod: Pod, wish: BindRequest) -> None:
    answer = await ask(pod.address, pod.token, "bind", msgspec.to_builtins(wish))
    assert answer.error is not None, wish
    assert answer.error.code == "conflict"  # 409, where it is said over HTTP


def create(client: Client, **wanted: Any) -> str:
    """A sandbox in a warm pod."""
    answer = client.post("/sandboxes", json={"runtime": "python:3.11", "resources": SMALL, **wanted})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["start"]["kind"] == "warm", made["start"]
    return str(made["id"])


def is_refused(client: Client) -> None:
    """Nobody gets a sandbox, and the answer says why."""
    body = {"runtime": "python:3.11", "resources": SMALL, "env": {"SECRET": "secret"}}
    answer = client.post("/sandboxes", json=body)
    assert NOT_OURS in is_error(answer, 503, "service_unavailable")["message"]
    assert client.get("/sandboxes?status=running").json()["items"] == []


def move(objects: Sandboxes, pod: Pod, address: str) -> None:
    """From now on gateways look for the pod at this address."""
    patch = json.dumps({"status": {"podIP": address}})
    where = ("-n", objects.pools, "--subresource=status", "--type=merge")
    objects.kubectl("patch", WARMPOD, pod.name, *where, "-p", patch)
