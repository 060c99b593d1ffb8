"""Warm pools on a real cluster. In most tests no node takes the pods: there the test says how they are."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import NotFound
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.wire import WatchEvent
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.choice import Request
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import (
    POD,
    PROFILE,
    RUNTIME,
    SANDBOX,
    WARMPOD,
    WARMPOOL,
    Kind,
)
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import NamedObject, Resources, WarmPod, WarmPool
from llmsafespace_operator.pods.room import Waiting
from llmsafespace_operator.warmpool.caches import Caches
from llmsafespace_operator.warmpool.pods import WarmPodReconciler
from llmsafespace_operator.warmpool.pools import WarmPoolReconciler
from llmsafespace_operator.warmpool.records import Records
from tests.cluster.conftest import Images
from tests.cluster.support import Kubectl, Namespaces, eventually_async

KEY = bytes(range(32))
READY = {
    "phase": "Running",
    "podIP": "10.244.255.1",
    "conditions": [{"type": "Ready", "status": "True"}],
}
FAILED = {
    "phase": "Failed",
    "containerStatuses": [
        {
            "name": "sandbox",
            "image": "",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "message": "no such module"}},
        }
    ],
}


class Operator:
    """The reconcilers of warm pools in this process, and what a test wants to know and do."""

    def __init__(self, client: KubeClient, namespace: str, settings: Settings, **informers: Any) -> None:
        self.client = client
        self.namespace = namespace
        only = [namespace]
        runtimes, profiles = Informer(client, RUNTIME), Informer(client, PROFILE, only)
        self.catalogue = Catalogue(runtimes, profiles, namespace)
        self.caches = Caches(
            warm_pools=Informer(client, WARMPOOL, only),
            warm_pods=informers.get("warm_pods") or Informer(client, WARMPOD, only),
            pods=Informer(client, POD, only),
            sandboxes=Informer(client, SANDBOX, only),
            profiles=profiles,
            runtimes=runtimes,
            catalogue=self.catalogue,
        )
        self.events = Events(client, "operator")
        records = Records()
        self.pools = WarmPoolReconciler(client, self.caches, self.events, records, Waiting())
        self.pods = WarmPodReconciler(client, self.caches, self.events, records, settings, KEY)
        self.claims = Claims(client, self.catalogue, self.caches.warm_pods, self.caches.warm_pools)
        self.kubelet: Callable[[Pod], dict[str, Any] | None] | None = None
        self._jobs: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Operator]:
        self.pools.follow()
        self.pods.follow()
        self.caches.pods.on_change(self._play_kubelet)
        informers: list[Informer[Any]] = [
            self.caches.warm_pools,
            self.caches.warm_pods,
            self.caches.pods,
            self.caches.sandboxes,
            self.caches.profiles,
            self.caches.runtimes,
        ]
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._end_jobs)
            stack.push_async_callback(self.events.close)
            for informer in informers:
                stack.push_async_callback(informer.stop)
                await informer.start()
            for controller in (self.pools.controller, self.pods.controller):
                stack.push_async_callback(controller.stop)
                controller.start()
            yield self

    async def warm_pods(self) -> list[WarmPod]:
        found, _ = await self.client.list(WARMPOD, self.namespace)
        return found

    async def ready(self) -> list[WarmPod]:
        return [one for one in await self.warm_pods() if one.status.phase == "Ready" and not one.spec.claim]

    async def claim(self, pool: WarmPool) -> WarmPod:
        """Claim one as a gateway does. Raises AssertionError when there was none to be had."""
        name = f"sb-{secrets.token_hex(10)}"
        request = Request(
            runtime=pool.spec.runtime,
            security_level="standard",
            resources=Resources(),
            namespace=self.namespace,
        )
        claimed = await self.claims.claim(request, NamedObject(name, self.namespace), name)
        assert isinstance(claimed, WarmPod), claimed
        return claimed

    async def condition(self, pool: WarmPool, type_: str = "Ready") -> tuple[str, str, str]:
        now = await self.client.get(WARMPOOL, pool.metadata.name, self.namespace)
        found = [one for one in now.status.conditions if one.type == type_]
        return (found[0].status, found[0].reason, found[0].message) if found else ("", "", "")

    def _play_kubelet(self, old: Pod | None, new: Pod | None) -> None:
        if new is None or self.kubelet is None or new.status.phase != "Pending":
            return
        status = self.kubelet(new)
        if status is not None:
            job = asyncio.create_task(self._say(new, status))
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)

    async def _say(self, pod: Pod, status: dict[str, Any]) -> None:
        name, namespace = pod.metadata.name, pod.metadata.namespace
        with contextlib.suppress(NotFound):  # deleted in the meantime
            await self.client.patch(POD, name, {"status": status}, namespace, subresource="status")

    async def _end_jobs(self) -> None:
        await asyncio.gather(*self._jobs)


Start = Callable[..., Awaitable[Operator]]


@pytest.fixture
async def start(client: KubeClient, crds: None, namespaces: Namespaces) -> AsyncIterator[Start]:
    """`start()` runs an operator for a namespace of its own, whose pods no node takes but with `real`."""
    async with AsyncExitStack() as stack:

        async def make(*, real: bool = False, namespace: str = "", **changes: Any) -> Operator:
            informers = {name: changes.pop(name) for name in ("warm_pods",) if name in changes}
            namespace = namespace or await asyncio.to_thread(namespaces, "pools")
            settings = Settings(
                system_namespace=namespace,
                key_file="/key",
                gateway_url="https://gateway",
                image_pull_policy="Never",
                pod_node_selector={} if real else {"llmsafespace.dev/node": "none"},
                **changes,
            )
            operator = Operator(client, namespace, settings, **informers)
            if not real:
                operator.kubelet = lambda pod: READY
            return await stack.enter_async_context(operator.running())

        yield make


@pytest.fixture
async def environment(client: KubeClient, crds: None) -> AsyncIterator[str]:
    """The name of an available RuntimeEnvironment, of an image that no node has."""
    name = f"pools-{secrets.token_hex(4)}"
    await make_environment(client, name)
    yield name
    await client.delete(RUNTIME, name)


async def make_environment(client: KubeClient, name: str) -> None:
    spec = {"image": "localhost/absent:1", "language": "pools", "version": "3.11"}
    await client.create(RUNTIME, {"metadata": {"name": name}, "spec": spec})
    await client.patch(RUNTIME, name, {"status": {"available": True}}, subresource="status")


async def make_pool(operator: Operator, runtime: str, **spec: Any) -> WarmPool:
    body = {"metadata": {"name": f"pool-{secrets.token_hex(2)}"}, "spec": {"runtime": runtime, **spec}}
    return await operator.client.create(WARMPOOL, body, operator.namespace)


async def change(operator: Operator, pool: WarmPool, **spec: Any) -> None:
    await operator.client.patch(WARMPOOL, pool.metadata.name, {"spec": spec}, operator.namespace)


async def filled(operator: Operator, size: int) -> list[WarmPod]:
    """Those that are ready and nobody's, as soon as these are so many and none is on its way."""

    async def check() -> bool:
        free = [one for one in await operator.warm_pods() if one.spec.claim is None]
        ready = [one for one in free if one.status.phase == "Ready"]
        return len(free) == len(ready) == size

    await eventually_async(check, what=f"{size} warm pods")
    return await operator.ready()


# -- a real pool -----------------------------------------------------------------------------------------


async def test_a_pool_is_filled_with_real_pods_and_goes_with_them(
    start: Start, environment: str, images: Images
) -> None:
    operator = await start(real=True)
    await operator.client.patch(RUNTIME, environment, {"spec": {"image": images["python"]}})
    pool = await make_pool(operator, environment, minSize=2, resources={"memory": "256Mi", "cpu": "100m"})
    for one in await filled(operator, 2):
        assert one.metadata.labels["component"] == "warmpod"
        assert one.status.runtime == environment
        assert one.status.resources is not None
        assert one.status.resources.memory == "256Mi"
        pod = await operator.client.get(POD, one.status.pod_name, one.status.pod_namespace)
        assert pod.status.pod_ip == one.status.pod_ip != ""
        assert pod.spec.node_name == one.status.node_name != ""
    await eventually_async(lambda: is_condition(operator, pool, "True", "PoolReady"))
    await eventually_async(lambda: is_counted(operator, pool, available=2, replicas=2))

    await operator.client.delete(WARMPOOL, pool.metadata.name, operator.namespace)
    await eventually_async(lambda: nothing_left(operator, WARMPOOL, WARMPOD, POD))


async def test_what_cannot_be_preloaded_is_told(start: Start, environment: str, images: Images) -> None:
    operator = await start(real=True)
    await operator.client.patch(RUNTIME, environment, {"spec": {"image": images["python"]}})
    pool = await make_pool(
        operator,
        environment,
        resources={"memory": "256Mi", "cpu": "100m"},
        preloadPackages=["json", "no_such_package"],
    )
    await eventually_async(lambda: is_condition(operator, pool, "True", "PoolReady"))
    words = "no_such_package"
    await eventually_async(lambda: is_condition(operator, pool, "False", "PreloadFailed", words, "Preloaded"))


async def is_condition(
    operator: Operator, pool: WarmPool, status: str, reason: str, words: str = "", type_: str = "Ready"
) -> bool:
    found = await operator.condition(pool, type_)
    assert found[:2] == (status, reason), found
    return words in found[2]


async def is_counted(operator: Operator, pool: WarmPool, *, available: int, replicas: int) -> bool:
    now = (await operator.client.get(WARMPOOL, pool.metadata.name, operator.namespace)).status
    return (now.available_pods, now.replicas) == (available, replicas)


async def nothing_left(operator: Operator, *kinds: Kind[Any]) -> bool:
    return not any([(await operator.client.list(kind, operator.namespace))[0] for kind in kinds])


# -- keeping a size --------------------------------------------------------------------------------------


async def test_what_is_claimed_is_refilled_and_outlives_its_pool(start: Start, environment: str) -> None:
    operator = await start()
    pool = await make_pool(operator, environment, minSize=3, maxSize=3)
    await filled(operator, 3)
    mine = await operator.claim(pool)
    await filled(operator, 3)
    await operator.client.delete(WARMPOOL, pool.metadata.name, operator.namespace)
    await eventually_async(lambda: nothing_left(operator, WARMPOOL))
    left = await operator.warm_pods()
    assert [one.metadata.name for one in left] == [mine.metadata.name]
    assert left[0].metadata.deletion_timestamp is None


async def test_scaling_down_never_takes_a_pod_from_under_a_claim(start: Start, environment: str) -> None:
    operator = await start()
    pool = await make_pool(operator, environment, minSize=20)
    await filled(operator, 20)
    claims = [asyncio.create_task(operator.claim(pool)) for _ in range(12)]
    await change(operator, pool, minSize=0)
    results = await asyncio.gather(*claims, return_exceptions=True)
    won = {one.metadata.name for one in results if isinstance(one, WarmPod)}
    assert won
    await filled(operator, 0)
    assert {one.metadata.name for one in await operator.warm_pods()} == won


async def test_a_pool_grows_with_its_load_up_to_its_maximum_and_says_so(
    start: Start, environment: str
) -> None:
    operator = await start()
    scaling = {"enabled": True, "targetUtilization": 50}
    pool = await make_pool(operator, environment, minSize=2, maxSize=4, autoScaling=scaling)
    await filled(operator, 2)
    for _ in range(6):
        await eventually_async(operator.ready)
        await eventually_async(lambda: claimed(operator, pool))
    await filled(operator, 4)
    await eventually_async(lambda: is_condition(operator, pool, "True", "AtMaximum"))


async def claimed(operator: Operator, pool: WarmPool) -> WarmPod:
    return await operator.claim(pool)


async def test_two_operators_at_once_settle_on_the_size(start: Start, environment: str) -> None:
    """Leadership may overlap for a moment: what is too much goes again."""
    first = await start()
    second = await start(namespace=first.namespace)
    second.kubelet = None
    pool = await make_pool(first, environment, minSize=6)
    await filled(first, 6)
    await first.claim(pool)
    await filled(first, 6)


# -- stale caches ----------------------------------------------------------------------------------------


class Delayed(KubeClient):
    """Tells of WarmPods only later, as a busy API server does."""

    delay = 1.5

    async def watch(
        self, kind: Kind[Any], *args: Any, **options: Any
    ) -> AsyncGenerator[WatchEvent[Any], None]:
        async with aclosing(super().watch(kind, *args, **options)) as events:
            async for event in events:
                await asyncio.sleep(self.delay)
                yield event


class Forgetful(Informer[WarmPod]):
    """Knows of own writes by its watch alone."""

    def observe(self, item: WarmPod) -> None:
        pass


async def test_a_cache_that_is_behind_makes_no_pod_too_many(
    start: Start, environment: str, namespaces: Namespaces
) -> None:
    namespace = await asyncio.to_thread(namespaces, "pools")
    late = await Delayed.connect(user_agent="late")
    try:
        operator = await start(namespace=namespace, warm_pods=Forgetful(late, WARMPOD, [namespace]))
        await make_pool(operator, environment, minSize=5)
        most = 0

        async def all_ready() -> bool:
            nonlocal most
            most = max(most, len(await operator.warm_pods()))
            return len(await operator.ready()) == 5

        await eventually_async(all_ready)
        assert most == 5
    finally:
        await late.close()


# -- failures --------------------------------------------------------------------------------------------


async def test_starts_that_fail_are_told_and_are_not_repeated_without_end(
    start: Start, environment: str, kubectl: Kubectl
) -> None:
    operator = await start()
    seen: set[str] = set()

    def fail(pod: Pod) -> dict[str, Any]:
        seen.add(pod.metadata.name)
        return FAILED

    operator.kubelet = fail
    pool = await make_pool(operator, environment, minSize=2)
    await eventually_async(lambda: is_condition(operator, pool, "False", "StartFailed", "no such module"))
    await eventually_async(lambda: told(kubectl, operator.namespace, pool.metadata.name))
    assert len(seen) <= 6
    operator.kubelet = lambda pod: READY
    await filled(operator, 2)
    await eventually_async(lambda: is_condition(operator, pool, "True", "PoolReady"))


async def told(kubectl: Kubectl, namespace: str, pool: str) -> bool:
    events = await asyncio.to_thread(kubectl.items, "events.events.k8s.io", namespace)
    return any(one["regarding"]["name"] == pool and one["reason"] == "StartFailed" for one in events)


async def test_an_image_that_is_not_there_is_said_in_words(start: Start, environment: str) -> None:
    operator = await start(real=True)
    pool = await make_pool(operator, environment, resources={"memory": "64Mi", "cpu": "10m"})
    await eventually_async(lambda: is_condition(operator, pool, "False", "StartFailed", "localhost/absent:1"))


async def test_a_quota_that_is_full_is_said_in_words(
    start: Start, environment: str, kubectl: Kubectl
) -> None:
    operator = await start()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    await asyncio.to_thread(
        kubectl.apply, {**quota, "spec": {"hard": {"pods": "1"}}}, namespace=operator.namespace
    )
    pool = await make_pool(operator, environment, minSize=3)
    await eventually_async(lambda: is_condition(operator, pool, "True", "PoolReady"))
    words = "exceeded quota"
    await eventually_async(lambda: is_condition(operator, pool, "False", "StartFailed", words, "Filled"))
    assert len(await operator.ready()) == 1


async def test_a_runtime_that_is_not_there_is_awaited(start: Start) -> None:
    operator = await start()
    later = f"later-{secrets.token_hex(4)}"
    pool = await make_pool(operator, later)
    await eventually_async(lambda: is_condition(operator, pool, "False", "RuntimeUnavailable"))
    assert await operator.warm_pods() == []
    try:
        await make_environment(operator.client, later)
        await filled(operator, 1)
        await eventually_async(lambda: is_condition(operator, pool, "True", "PoolReady"))
    finally:
        await operator.client.delete(RUNTIME, later)


@pytest.mark.parametrize("how", ["deleted", "evicted", "its node is silent"])
async def test_a_warm_pod_that_is_lost_is_replaced(start: Start, environment: str, how: str) -> None:
    operator = await start()
    await make_pool(operator, environment)
    (first,) = await filled(operator, 1)
    name = first.status.pod_name
    if how == "deleted":
        await operator.client.delete(POD, name, operator.namespace)
    else:
        evicted = {"phase": "Failed", "reason": "Evicted"}
        silent = {"conditions": [{"type": "Ready", "status": "False"}]}
        status = {"status": evicted if how == "evicted" else silent}
        await operator.client.patch(POD, name, status, operator.namespace, subresource="status")

    async def replaced() -> bool:
        return [one.metadata.name for one in await operator.ready()] not in ([], [first.metadata.name])

    await eventually_async(replaced)


# -- claims without a Sandbox ------------------------------------------------------------------------------


async def test_a_claim_whose_sandbox_never_came_is_cleared_away(start: Start, environment: str) -> None:
    operator = await start(claim_grace=1.0)
    pool = await make_pool(operator, environment)
    await filled(operator, 1)
    orphan = await operator.claim(pool)
    await filled(operator, 1)
    kept = await operator.claim(pool)
    assert kept.spec.claim is not None
    reference = {
        "name": kept.metadata.name,
        "namespace": operator.namespace,
        "claimId": kept.spec.claim.claim_id,
    }
    body = {
        "metadata": {"name": kept.spec.claim.sandbox.name},
        "spec": {"runtime": environment, "warmPod": reference},
    }
    await operator.client.create(SANDBOX, body, operator.namespace)

    async def gone() -> bool:
        return orphan.metadata.name not in {one.metadata.name for one in await operator.warm_pods()}

    await eventually_async(gone)
    assert kept.metadata.name in {one.metadata.name for one in await operator.warm_pods()}
    await operator.client.delete(SANDBOX, kept.spec.claim.sandbox.name, operator.namespace)
    await filled(operator, 1)
    await eventually_async(lambda: only(operator, 1))


async def only(operator: Operator, count: int) -> bool:
    return len(await operator.warm_pods()) == count


# -- changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["OnReplenish", "Recreate"])
async def test_a_changed_pool_is_rolled_out(start: Start, environment: str, strategy: str) -> None:
    operator = await start()
    pool = await make_pool(operator, environment, minSize=4, updateStrategy=strategy)
    before = {one.metadata.name for one in await filled(operator, 4)}
    await change(operator, pool, resources={"memory": "2Gi"})

    async def settled() -> bool:
        found = await operator.ready()
        new = [one for one in found if one.status.resources and one.status.resources.memory == "2Gi"]
        return len(found) == 4 and len(new) == (4 if strategy == "Recreate" else 1)

    if strategy == "OnReplenish":
        mine = await operator.claim(pool)
        assert mine.metadata.name in before
    await eventually_async(settled)


async def test_a_warm_pod_made_by_hand_is_a_warm_pod(
    start: Start, environment: str, kubectl: Kubectl
) -> None:
    operator = await start()
    pool = await make_pool(operator, environment, minSize=2)
    await filled(operator, 2)
    by_hand = {
        "apiVersion": "llmsafespace.dev/v1",
        "kind": "WarmPod",
        "metadata": {"name": "python-pool-abc123", "labels": dict(names.WARMPOD_LABELS)},
        "spec": {
            "poolRef": {"name": pool.metadata.name, "namespace": operator.namespace},
            "creationTimestamp": "2023-07-01T09:55:00Z",
        },
    }
    await asyncio.to_thread(kubectl.apply, by_hand, namespace=operator.namespace)

    async def taken_in() -> bool:
        return "python-pool-abc123" in {one.metadata.name for one in await operator.ready()}

    await eventually_async(taken_in)
    await filled(operator, 2)
    assert await taken_in()


async def test_a_settled_pool_costs_no_writes(start: Start, environment: str) -> None:
    operator = await start()
    pool = await make_pool(operator, environment, minSize=3)
    await filled(operator, 3)

    await eventually_async(lambda: is_counted(operator, pool, available=3, replicas=3))
    before = writes()
    for _ in range(3):  # every reason to look again
        operator.pools.controller.enqueue((operator.namespace, pool.metadata.name))
        for one in await operator.warm_pods():
            operator.pods.controller.enqueue((operator.namespace, one.metadata.name))
        await asyncio.sleep(0.3)
    assert writes() == before


def writes() -> float:
    samples = [sample for metric in metrics.REQUESTS.collect() for sample in metric.samples]
    return sum(one.value for one in samples if one.name.endswith("_total") and one.labels["method"] != "GET")
