"""What a WarmPod needs next, what its pool's status says, and what is remembered of a pool."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Unavailable, Unreachable
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import POD, PROFILE, RUNTIME, SANDBOX, WARMPOD, WARMPOOL
from llmsafespace_kube.resources.kubernetes import Metadata, OwnerReference, Pod, PodCondition, PodStatus
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    NamedObject,
    PreloadScript,
    ProfileRef,
    RuntimeEnvironment,
    RuntimeEnvironmentSpec,
    RuntimeEnvironmentStatus,
    SandboxProfile,
    SandboxProfileSpec,
    WarmPod,
    WarmPodClaim,
    WarmPodSpec,
    WarmPodStatus,
    WarmPool,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_operator.pods.made_as import MADE_AS, made_as
from llmsafespace_operator.pods.room import HOLD, Waiting
from llmsafespace_operator.warmpool import makes
from llmsafespace_operator.warmpool.caches import Caches
from llmsafespace_operator.warmpool.counts import Counts, count
from llmsafespace_operator.warmpool.members import Members
from llmsafespace_operator.warmpool.pods import WarmPodReconciler
from llmsafespace_operator.warmpool.pools import WarmPoolReconciler
from llmsafespace_operator.warmpool.records import Record, Records
from llmsafespace_operator.warmpool.status import Known, body, status, urgent, verdict
from llmsafespace_operator.warmpool.steps import START_LIMIT, Announce, Make, Remove, Wait, next_step

NOW = datetime.now(UTC)


def warm_pod(phase: Any = "Pending", born: float = 0.0, **spec: Any) -> WarmPod:
    meta = Metadata(name="p-1", namespace="pools", uid="u", creation_timestamp=NOW - timedelta(seconds=born))
    return WarmPod(meta, WarmPodSpec(NamedObject("p", "pools"), **spec), WarmPodStatus(phase=phase))


def pool(**spec: Any) -> WarmPool:
    values: dict[str, Any] = {"runtime": "python:3.11"} | spec
    return WarmPool(Metadata(name="p", namespace="pools", generation=3), WarmPoolSpec(**values))


def pod(phase: str = "Running", ready: str = "True") -> Pod:
    conditions = [PodCondition("Ready", ready)]
    return Pod(Metadata(name="p-1"), status=PodStatus(phase=phase, pod_ip="10.1.1.1", conditions=conditions))


# -- the next step ---------------------------------------------------------------------------------------


def test_a_warm_pod_gets_a_pod_and_is_announced_when_that_is_ready() -> None:
    assert next_step(warm_pod(), None, pool(), NOW) == Make()
    assert next_step(warm_pod(born=10), pod("Pending", "False"), pool(), NOW) == Wait(START_LIMIT - 10)
    assert next_step(warm_pod(), pod(), pool(), NOW) == Announce()
    assert next_step(warm_pod("Ready"), pod(), pool(), NOW) == Wait()


def test_one_that_does_not_start_goes_and_its_pool_is_told() -> None:
    failed = pod("Failed")
    assert next_step(warm_pod(), failed, pool(), NOW) == Remove("its pod was lost", failed=True)
    late = warm_pod(born=START_LIMIT)
    assert next_step(late, None, pool(), NOW) == Remove("not ready after 180 s: it has no pod", failed=True)
    assert next_step(late, None, None, NOW) == Remove(
        "not ready after 180 s: there is no such pool", failed=True
    )


@pytest.mark.parametrize("lost", [None, pod(ready="False"), pod("Failed")])
def test_one_that_is_lost_later_goes_too_but_is_no_failed_start(lost: Pod | None) -> None:
    step = next_step(warm_pod("Ready"), lost, pool(), NOW)
    assert isinstance(step, Remove)
    assert not step.failed


def test_without_its_pool_a_ready_one_goes_at_once_and_a_new_one_waits() -> None:
    assert next_step(warm_pod("Ready"), pod(), None, NOW) == Remove("its pool is gone")
    assert next_step(warm_pod(), None, None, NOW) == Make()


# -- what pods are made of ---------------------------------------------------------------------------------


class Cache:
    """A cache of what it is given."""

    def __init__(self, *some: Any) -> None:
        self._some = some

    def items(self) -> tuple[Any, ...]:
        return self._some

    def get(self, name: str, namespace: str | None = None) -> Any:
        found = (one for one in self._some if one.metadata.name == name)
        return next((one for one in found if one.metadata.namespace == (namespace or "")), None)


def environment(image: str = "i:1") -> RuntimeEnvironment:
    spec = RuntimeEnvironmentSpec(image=image, language="python", version="3.11")
    return RuntimeEnvironment(Metadata(name="python-3.11"), spec, RuntimeEnvironmentStatus(available=True))


def profile(**spec: Any) -> SandboxProfile:
    return SandboxProfile(Metadata(name="standard", namespace="system"), SandboxProfileSpec(**spec))


def catalogue(runtime: RuntimeEnvironment, *profiles: SandboxProfile) -> Catalogue:
    return Catalogue(Cache(runtime), Cache(*profiles), "system")  # type: ignore[arg-type]


def revision(of: WarmPool, found: Catalogue) -> str:
    make = makes.make_of(of, found)
    assert isinstance(make, makes.Make)
    return make.revision


def test_pods_are_of_one_revision_as_long_as_they_are_made_alike() -> None:
    same = revision(pool(), catalogue(environment()))
    assert revision(pool(min_size=9, ttl=5), catalogue(environment())) == same
    different = {
        revision(pool(), catalogue(environment("i:2"))),
        revision(pool(), catalogue(environment(), profile())),
        revision(pool(), catalogue(environment(), profile(runtime_class_name="gvisor"))),
        revision(pool(security_level="high"), catalogue(environment())),
        revision(pool(preload_packages=["numpy"]), catalogue(environment())),
        revision(pool(preload_scripts=[PreloadScript("a", "b")]), catalogue(environment())),
    }
    assert len(different | {same}) == 7


def test_why_no_pod_can_be_made_is_said() -> None:
    absent = makes.make_of(pool(runtime="ruby:3"), catalogue(environment()))
    assert isinstance(absent, str)
    assert "ruby" in absent
    unknown = makes.make_of(pool(profile_ref=ProfileRef("strict")), catalogue(environment()))
    assert unknown == "there is no SandboxProfile strict in the namespace pools"


def test_a_ready_pod_tells_as_what_it_was_made() -> None:
    made = makes.make_of(pool(), catalogue(environment(), profile()))
    assert isinstance(made, makes.Make)
    recipe = makes.recipe(warm_pod(), pool(), made)
    seen = msgspec.structs.replace(
        pod(), metadata=Metadata(name="p-1", namespace="pools", annotations=recipe.annotations)
    )
    found = makes.ready(seen)
    assert (found.phase, found.pod_name, found.pod_ip) == ("Ready", "p-1", "10.1.1.1")
    assert (found.runtime, found.revision) == ("python-3.11", made.revision)
    assert found.profile_ref == ProfileRef("standard", "system")
    assert found.resources == pool().spec.resources


def test_an_annotation_that_cannot_be_read_says_nothing() -> None:
    seen = Pod(Metadata(name="p-1", annotations={MADE_AS: "{"}))
    assert made_as(seen) == WarmPodStatus()


# -- the pool's status -----------------------------------------------------------------------------------


def test_what_is_claimed_counts_by_itself() -> None:
    claim = WarmPodClaim("sb-1", NamedObject("sb-1", "agents"), NOW)
    members = [warm_pod("Ready"), warm_pod("Ready", claim=claim), warm_pod("Assigned", claim=claim)]
    counts = count([*members, warm_pod()])
    assert counts == Counts(available=1, assigned=2, pending=1)
    written = status(pool(), Known(counts=counts, desired=2), False, NOW)
    assert (written.replicas, written.observed_generation, written.last_scale_time) == (2, 3, NOW)


@pytest.mark.parametrize(
    ("known", "ready", "reason"),
    [
        (Known(counts=Counts(2), desired=2), True, "PoolReady"),
        (Known(counts=Counts(), desired=0), True, "PoolReady"),
        (Known(counts=Counts(pending=2), desired=2), False, "Filling"),
        (Known(counts=Counts(2), desired=2, limited=True), True, "AtMaximum"),
        (Known(counts=Counts(), desired=2, trouble="no image"), False, "StartFailed"),
        (Known(counts=Counts(1), desired=2, trouble="no image"), True, "PoolReady"),
        (Known(counts=Counts(), desired=2, crowded="no room"), False, "Unschedulable"),
        (Known(counts=Counts(1), desired=2, crowded="no room"), True, "PoolReady"),
        (Known(counts=Counts(), desired=2, yielding=True), False, "SandboxesWait"),
        (Known(counts=Counts(2), desired=2, unavailable="no ruby"), False, "RuntimeUnavailable"),
        (Known(counts=Counts(), desired=0, unavailable="no ruby"), False, "RuntimeUnavailable"),
        (Known(counts=Counts(), desired=2, unavailable="no ruby"), False, "RuntimeUnavailable"),
        (Known(counts=Counts(2), desired=2, problems=("no numpy",)), True, "PoolReady"),
    ],
)
def test_ready_means_that_a_claim_is_served_and_says_what_is_amiss(
    known: Known, ready: bool, reason: str
) -> None:
    found = verdict(known, NOW, 1)
    assert (found.status, found.reason) == (str(ready), reason)


def test_only_a_pool_that_serves_again_or_breaks_is_told_at_once() -> None:
    def said(**known: Any) -> WarmPoolStatus:
        return status(pool(), Known(desired=2, **known), False, NOW)

    serves, fewer = said(counts=Counts(2)), said(counts=Counts(1, 1))
    empty, broken = said(counts=Counts(0, 2)), said(counts=Counts(), trouble="no image")
    assert urgent(WarmPoolStatus(), empty)
    assert urgent(empty, serves)
    assert urgent(serves, broken)
    assert not urgent(serves, fewer)
    assert not urgent(serves, empty)


def test_a_status_is_written_with_its_zeros() -> None:
    written = body(WarmPoolStatus(available_pods=2))
    assert written == {"availablePods": 2, "assignedPods": 0, "pendingPods": 0, "replicas": 0}


# -- what is asked for -------------------------------------------------------------------------------------


async def test_a_warm_pod_goes_only_when_the_api_server_says_itself_that_its_pod_is_not_ready() -> None:
    class Server:
        live = owned_pod("True")
        deleted: list[str] = []

        async def get(self, *_: Any) -> Pod:
            return self.live

        async def delete(self, kind: Any, name: str, *_: Any, **__: Any) -> bool:
            self.deleted.append(name)
            return False

    server = Server()
    client = cast(KubeClient, server)
    warm_pods, pods = Informer(client, WARMPOD, ["pools"]), Informer(client, POD, ["pools"])
    caches = Caches(
        warm_pools=Informer(client, WARMPOOL, ["pools"]),
        warm_pods=warm_pods,
        pods=pods,
        sandboxes=Informer(client, SANDBOX, ["sandboxes"]),
        profiles=Informer(client, PROFILE, ["pools"]),
        runtimes=Informer(client, RUNTIME),
        catalogue=cast(Catalogue, None),
    )
    settings = Settings(system_namespace="system", key_file="key", gateway_url="http://gateway")
    reconciler = WarmPodReconciler(client, caches, cast(Events, None), Records(), settings, b"key")
    announced = warm_pod("Ready")
    announced.metadata.resource_version = "9"
    known_pool = pool()
    known_pool.metadata.resource_version = "1"
    caches.warm_pools.observe(known_pool)
    warm_pods.observe(announced)
    pods.observe(owned_pod("False"))
    await reconciler.reconcile(("pools", "p-1"))
    assert server.deleted == []
    server.live = owned_pod("False")
    await reconciler.reconcile(("pools", "p-1"))
    assert server.deleted == ["p-1"]


async def test_a_pool_fills_again_though_somebody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told when to look again, as nothing else may wake it."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    class Server:
        made = 0

        async def create(self, *_: Any) -> WarmPod:
            self.made += 1
            meta = Metadata(name=f"p-{self.made}", namespace="pools", resource_version=str(self.made))
            return WarmPod(meta, WarmPodSpec(NamedObject("p", "pools")))

        async def patch(self, *_: Any, **__: Any) -> WarmPool:
            return known_pool

    server, waiting = Server(), Waiting()
    client = cast(KubeClient, server)
    caches = Caches(
        warm_pools=Informer(client, WARMPOOL, ["pools"]),
        warm_pods=Informer(client, WARMPOD, ["pools"]),
        pods=Informer(client, POD, ["pools"]),
        sandboxes=Informer(client, SANDBOX, ["sandboxes"]),
        profiles=Informer(client, PROFILE, ["pools"]),
        runtimes=Informer(client, RUNTIME),
        catalogue=catalogue(environment()),
    )
    known_pool = pool(min_size=1)
    known_pool.metadata.finalizers = [names.WARMPOOL_FINALIZER]
    known_pool.metadata.resource_version = "1"
    caches.warm_pools.observe(known_pool)
    reconciler = WarmPoolReconciler(client, caches, cast(Events, None), Records(), waiting)
    waiting.add(("sandboxes", "huge"))
    again = await reconciler.reconcile(("pools", "p"))
    assert server.made == 0
    assert again is not None
    assert again <= HOLD
    now += HOLD
    await reconciler.reconcile(("pools", "p"))
    assert server.made == 1


def owned_pod(ready: str) -> Pod:
    made = pod(ready=ready)
    owner = OwnerReference(api_version="llmsafespace.dev/v1", kind="WarmPod", name="p-1", uid="u")
    made.metadata = Metadata(
        name="p-1", namespace="pools", uid="pod", resource_version="8", owner_references=[owner]
    )
    return made


# -- what is remembered ------------------------------------------------------------------------------------


def test_failures_of_one_attempt_count_once_and_one_success_forgives_them() -> None:
    record = Record()
    for _ in range(20):
        record.failed("no image")
    first = record.retry_at
    assert record.trouble() == "no image"
    record.retry_at = 0.0
    record.failed("no image")
    assert record.retry_at > first
    record.ready("p-1")
    assert (record.retry_at, record.trouble()) == (0.0, "")


def _troubled() -> Record:
    record = Record()
    record.failed("no image")
    record.problems = ["no numpy"]
    return record


def test_a_changed_pool_starts_with_a_clean_slate() -> None:
    record = _troubled()
    record.changed("r2")
    assert (record.retry_at, record.trouble(), record.problems) == (0.0, "", None)


def test_claims_make_a_rate_and_starts_a_lead_time() -> None:
    record = Record()
    for _ in range(30):
        record.claimed()
    assert record.rate() == pytest.approx(3.0)
    assumed = record.lead
    record.created("p-1")
    assert record.ready("p-1") is not None
    assert record.lead < assumed
    assert record.ready("p-2") is None


def test_a_trouble_is_told_when_it_comes_and_when_it_goes() -> None:
    records = Records()
    told: list[tuple[str, str]] = []
    records.on_news = told.append
    for trouble in ("no image", "no image", "", ""):
        records.note(("pools", "p"), "p-1", trouble)
    assert told == [("pools", "p")] * 2
    records.note(("pools", "p"), "p-1", "no image")
    records.gone(("pools", "p"), "p-1")
    assert records.of(("pools", "p")).trouble() == ""


# -- what is remembered ------------------------------------------------------------------------------------


async def test_a_warm_pod_that_was_not_created_for_certain_is_not_waited_for() -> None:
    class Server:
        def __init__(self, *answers: Exception) -> None:
            self.answers = list(answers)

        async def create(self, *_: Any) -> None:
            raise self.answers.pop(0)

    async def settled(*answers: Exception) -> bool:
        client = cast(KubeClient, Server(*answers))
        members = Members(client, Informer(client, WARMPOD, ["pools"]))
        with pytest.raises(Unavailable):
            await members.create(pool(), 1, Record())
        return members.settled(("pools", "p"))

    assert await settled(Unreachable("refused"))
    assert not await settled(Unavailable("lost"), Unreachable("refused"))
    assert not await settled(Unavailable("lost"), Unavailable("lost"))


def test_claims_are_forgotten_where_nobody_asks_for_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    record, now = Record(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(1000):
        now += 1.0
        record.claimed()
    assert len(record._arrivals) <= 11
