"""Claims against a real API server: whoever asks at the same time, nobody gets what somebody else has."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Invalid, Unavailable
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.choice import Request, request_of
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.claims.runtimes import Resolved
from llmsafespace_kube.resources.kinds import PROFILE, RUNTIME, WARMPOD, WARMPOOL, Kind, T
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.types import (
    NamedObject,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    SandboxSpec,
    WarmPod,
)
from tests.cluster.support import Namespaces, eventually_async

NAMESPACE = "agents"  # of the Sandboxes, which these tests do not make


RUNTIME_NAME = "python-3.11"


class OneRuntime(Catalogue):
    """Knows one runtime, whatever operators and runtimes the cluster has."""

    def runtime(self, requested: str) -> Resolved:
        spec = RuntimeEnvironmentSpec(image="example/image", language="python", version="3.11")
        return Resolved(RuntimeEnvironment(Metadata(name=RUNTIME_NAME), spec))


class Place:
    """A namespace with a pool, whose pods exist as WarmPods only."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def prepare(self, pods: int) -> None:
        pool = {"metadata": {"name": "pool"}, "spec": {"runtime": "python:3.11"}}
        await self.client.create(WARMPOOL, pool, self.namespace)
        limit = asyncio.Semaphore(16)

        async def one() -> None:
            async with limit:
                await self.add()

        await asyncio.gather(*(one() for _ in range(pods)))

    async def add(self, **status: Any) -> WarmPod:
        """A WarmPod of the pool, ready."""
        reference = {"name": "pool", "namespace": self.namespace}
        name = f"pool-{secrets.token_hex(4)}"
        await self.client.create(
            WARMPOD, {"metadata": {"name": name}, "spec": {"poolRef": reference}}, self.namespace
        )
        made = {
            "phase": "Ready",
            "runtime": RUNTIME_NAME,
            "securityLevel": "standard",
            "resources": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"},
            **status,
        }
        return await self.client.patch(WARMPOD, name, {"status": made}, self.namespace, subresource="status")

    async def warm_pods(self) -> list[WarmPod]:
        return (await self.client.list(WARMPOD, self.namespace))[0]

    @asynccontextmanager
    async def claims(self, client: KubeClient | None = None) -> AsyncIterator[tuple[Claims, Request]]:
        """Claims as a process of its own has them, and the request that the pool serves."""
        client = client or self.client
        pods = Informer(client, WARMPOD, [self.namespace])
        pools = Informer(client, WARMPOOL, [self.namespace])
        profiles = Informer(client, PROFILE, [self.namespace])
        catalogue = OneRuntime(Informer(client, RUNTIME), profiles, self.namespace)
        made = Claims(client, catalogue, pods, pools)
        async with AsyncExitStack() as stack:
            informers: tuple[Informer[Any], ...] = (pods, pools, profiles)
            for informer in informers:
                stack.push_async_callback(informer.stop)
                await informer.start()
            environment = catalogue.runtime("python").environment
            yield made, request_of(SandboxSpec(runtime="python"), NAMESPACE, environment, None)


@pytest.fixture
def place(client: KubeClient, crds: None, namespaces: Namespaces) -> Place:
    return Place(client, namespaces("claims"))


def new_id() -> str:
    return f"sb-{secrets.token_hex(10)}"


def sandbox(claim_id: str) -> NamedObject:
    return NamedObject(claim_id, NAMESPACE)


async def test_three_processes_share_a_pool_and_nobody_gets_the_same(place: Place) -> None:
    await place.prepare(150)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(place.claims()) for _ in range(3)]
        ids = [new_id() for _ in range(200)]
        limit = asyncio.Semaphore(30)

        async def one(number: int) -> WarmPod | str:
            claims, request = processes[number % 3]
            async with limit:
                return await claims.claim(request, sandbox(ids[number]), ids[number])

        found = await asyncio.gather(*(one(number) for number in range(200)))
    won = {claim_id: pod for claim_id, pod in zip(ids, found, strict=True) if not isinstance(pod, str)}
    assert len({pod.metadata.uid for pod in won.values()}) == len(won) == 150
    there = {pod.metadata.name: pod.spec.claim for pod in await place.warm_pods()}
    for claim_id, pod in won.items():
        claim = there[pod.metadata.name]
        assert claim is not None
        assert (claim.claim_id, claim.sandbox) == (claim_id, sandbox(claim_id))
    for reason in found:
        if isinstance(reason, str):
            assert reason in (
                "the warm pool pool was empty",
                "other sandboxes took the warm pods first",
            )


async def test_the_same_claim_again_gives_the_same_pod(place: Place) -> None:
    await place.prepare(3)
    claim_id = new_id()
    async with place.claims() as (claims, request):
        first = await claims.claim(request, sandbox(claim_id), claim_id)
        again = await claims.claim(request, sandbox(claim_id), claim_id)
    async with place.claims() as (claims, request):
        later = await claims.claim(request, sandbox(claim_id), claim_id)
    assert {each.metadata.uid for each in (first, again, later) if not isinstance(each, str)} == {
        first.metadata.uid if not isinstance(first, str) else ""
    }


async def test_a_pod_that_is_not_ready_any_more_is_left_alone(place: Place) -> None:
    await place.prepare(1)
    async with place.claims() as (claims, request):
        (pod,) = await place.warm_pods()
        body = {"status": {"phase": "Draining"}}
        await place.client.patch(WARMPOD, pod.metadata.name, body, place.namespace, subresource="status")
        assert isinstance(await claims.claim(request, sandbox("sb-1"), new_id()), str)
    (pod,) = await place.warm_pods()
    assert pod.spec.claim is None


async def test_a_name_that_is_used_again_is_another_pod(place: Place) -> None:
    """The token is derived from the uid: a claim must not win a pod that the informer has not seen."""
    await place.prepare(0)
    stale = await place.add()
    async with place.claims() as (claims, request):
        await place.client.delete(WARMPOD, stale.metadata.name, place.namespace)
        body = {
            "metadata": {"name": stale.metadata.name},
            "spec": {"poolRef": {"name": "pool", "namespace": place.namespace}},
        }
        await place.client.create(WARMPOD, body, place.namespace)
        status = {"status": {"phase": "Ready", "runtime": RUNTIME_NAME}}
        await place.client.patch(WARMPOD, stale.metadata.name, status, place.namespace, subresource="status")
        assert isinstance(await claims.claim(request, sandbox("sb-1"), new_id()), str)
    (pod,) = await place.warm_pods()
    assert pod.spec.claim is None


async def test_a_second_claim_and_a_release_are_refused_by_the_api_server(place: Place) -> None:
    await place.prepare(1)
    claim_id = new_id()
    async with place.claims() as (claims, request):
        pod = await claims.claim(request, sandbox(claim_id), claim_id)
        assert not isinstance(pod, str)
    other = {"claimId": "sb-thief", "sandbox": {"name": "thief", "namespace": "x"}, "time": now()}
    for patch in (
        [{"op": "add", "path": "/spec/claim", "value": other}],
        [{"op": "replace", "path": "/spec/claim/claimId", "value": "sb-thief"}],
        [{"op": "remove", "path": "/spec/claim"}],
    ):
        with pytest.raises(Invalid, match="a claim is never changed"):
            await place.client.patch(WARMPOD, pod.metadata.name, patch, place.namespace)
    (there,) = await place.warm_pods()
    assert there.spec.claim == pod.spec.claim


def now() -> str:
    return datetime.now(UTC).isoformat()


class Unsure(KubeClient):
    """A client whose patches happen, or not, but are not answered."""

    script: list[str]

    async def patch(
        self,
        kind: Kind[T],
        name: str,
        patch: list[Any] | dict[str, Any],
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> T:
        step = self.script.pop(0) if self.script else "answered"
        if step == "not sent":
            raise Unavailable("the connection was lost")
        done = await super().patch(kind, name, patch, namespace, subresource=subresource)
        if step == "sent":
            raise Unavailable("the connection was lost")
        return done


@pytest.fixture
async def unsure() -> AsyncIterator[Callable[..., Unsure]]:
    client = await Unsure.connect(user_agent="llmsafespace-tests")
    assert isinstance(client, Unsure)

    def with_script(*script: str) -> Unsure:
        client.script = list(script)
        return client

    yield with_script
    await client.close()


@pytest.mark.parametrize("lost", ["sent", "not sent"])
async def test_a_claim_whose_answer_is_lost_is_still_one_claim(
    place: Place, unsure: Callable[..., Unsure], lost: str
) -> None:
    await place.prepare(5)
    claim_id = new_id()
    async with place.claims(unsure(lost)) as (claims, request):
        pod = await claims.claim(request, sandbox(claim_id), claim_id)
    assert not isinstance(pod, str)
    claimed = [each for each in await place.warm_pods() if each.spec.claim is not None]
    assert [each.metadata.uid for each in claimed] == [pod.metadata.uid]


async def test_an_api_server_that_stays_silent_is_told_and_the_claim_is_found_later(
    place: Place, unsure: Callable[..., Unsure]
) -> None:
    await place.prepare(5)
    claim_id = new_id()
    async with place.claims(unsure("sent", "not sent")) as (claims, request):
        with pytest.raises(Unavailable):
            await claims.claim(request, sandbox(claim_id), claim_id)

        async def seen() -> bool:
            return claims.claimed(claim_id) is not None

        await eventually_async(seen)
        pod = await claims.claim(request, sandbox(claim_id), claim_id)
    assert not isinstance(pod, str)
    claimed = [each for each in await place.warm_pods() if each.spec.claim is not None]
    assert [each.metadata.uid for each in claimed] == [pod.metadata.uid]


async def test_a_claim_that_is_given_up_leaves_its_pod_to_others(
    place: Place, unsure: Callable[..., Unsure]
) -> None:
    await place.prepare(1)
    async with place.claims(unsure("not sent", "not sent")) as (claims, request):
        with pytest.raises(Unavailable):
            await claims.claim(request, sandbox("sb-1"), new_id())
        claim_id = new_id()
        assert not isinstance(await claims.claim(request, sandbox(claim_id), claim_id), str)
