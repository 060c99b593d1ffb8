"""Which warm pods give way to a sandbox that no node takes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Conflict
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import key_of
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.resources.kinds import POD, PROFILE, RUNTIME, SANDBOX, WARMPOD, WARMPOOL
from llmsafespace_kube.resources.kubernetes import Metadata, Pod, PodSpec
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    NamedObject,
    PoolResources,
    Resources,
    Sandbox,
    SandboxSpec,
    WarmPod,
    WarmPodClaim,
    WarmPodSpec,
)
from llmsafespace_operator.pods.made_as import MADE_AS
from llmsafespace_operator.pods.room import HOLD, PAUSE, Spare, Waiting, giving_way, nodes_for
from llmsafespace_operator.sandbox.apply import Actions
from llmsafespace_operator.sandbox.observe import Caches, Observer
from llmsafespace_operator.sandbox.plan import GiveWay, Observed
from llmsafespace_operator.sandbox.turns import Turns
from llmsafespace_protocol.quantities import number


def spare(name: str, node: str = "a", cpu: str = "1", memory: str = "1Gi") -> Spare:
    warm_pod = WarmPod(Metadata(name=name), WarmPodSpec(NamedObject("pool", "warm-pools")))
    return Spare(warm_pod, node, PoolResources(cpu=cpu, memory=memory))


def given_up(wanted: Resources, *spares: Spare) -> set[str]:
    return {one.metadata.name for one in giving_way(wanted, spares)}


def test_as_few_as_make_room_go() -> None:
    three = [spare("x"), spare("y"), spare("z")]
    assert len(given_up(Resources(cpu="500m"), *three)) == 1
    assert len(given_up(Resources(cpu="1500m"), *three)) == 2


def test_they_are_of_one_node() -> None:
    """Half a node's room here and half there is room for nobody."""
    assert given_up(Resources(cpu="2"), spare("x"), spare("y", "b"), spare("z", "b")) == {"y", "z"}


@pytest.mark.parametrize(
    "wanted", [Resources(cpu="64"), Resources(memory="512Gi"), Resources(ephemeral_storage="1000Gi")]
)
def test_none_go_for_nothing(wanted: Resources) -> None:
    """What is far larger than all of them would not fit afterwards either, and must not empty a pool."""
    assert not given_up(wanted, *(spare(str(number)) for number in range(8)))


def test_what_is_free_already_may_be_the_rest() -> None:
    assert given_up(Resources(cpu="1500m"), spare("x")) == {"x"}


def test_those_that_wait_for_a_node_take_nobody_s_room() -> None:
    assert given_up(Resources(cpu="1"), spare("x"), spare("y"), spare("queued", node="")) == {"x", "queued"}
    assert given_up(Resources(cpu="64"), spare("x"), spare("queued", node="")) == {"queued"}


def test_no_warm_pod_is_no_help() -> None:
    assert not given_up(Resources())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["250m", "1", "2"])), max_size=12),
    st.sampled_from(["100m", "500m", "1", "3"]),
)
def test_one_node_and_no_pod_too_many(pods: list[tuple[str, str]], cpu: str) -> None:
    spares = {str(index): spare(str(index), node, each) for index, (node, each) in enumerate(pods)}
    chosen = [spares[name] for name in given_up(Resources(cpu=cpu), *spares.values())]
    assert len({one.node for one in chosen}) <= 1
    sizes = sorted(number(one.resources.cpu) for one in chosen)
    assert not chosen or sum(sizes) >= number(cpu) / 2
    assert sum(sizes[1:]) < number(cpu)  # without the smallest it would not do


def test_who_leads_again_remembers_nobody() -> None:
    """Whoever waited may have gone while another process led, and nobody would ever say so."""
    waiting, turns = Waiting(), Turns(1)
    waiting.add(("n", "x"))
    assert turns.take(("n", "x"))
    waiting.clear()
    turns.clear()
    assert not waiting.held()
    assert turns.take(("n", "y"))


class Clock:
    """Time that only passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_pools_wait_until_nobody_does(clock: Clock) -> None:
    waiting, over = Waiting(), []
    waiting.on_over = lambda: over.append(True)
    waiting.add(("n", "x"))
    waiting.add(("n", "y"))
    waiting.discard(("n", "x"))
    waiting.discard(("n", "never"))
    assert waiting.held()
    assert not over
    waiting.discard(("n", "y"))
    assert not waiting.held()
    assert over == [True]


def test_one_sandbox_holds_pools_back_for_a_while_only(clock: Clock) -> None:
    """However long it waits: what never fits must not keep everybody's pools empty."""
    waiting = Waiting()
    waiting.add(("n", "huge"))
    assert waiting.held() == HOLD
    clock.now += HOLD - 1
    waiting.add(("n", "huge"))
    assert waiting.held() == pytest.approx(1)
    clock.now += 1
    waiting.add(("n", "huge"))
    assert not waiting.held()


def test_who_has_a_node_holds_nobody_back_and_gets_no_second_round(clock: Clock) -> None:
    waiting, over = Waiting(), []
    waiting.on_over = lambda: over.append(True)
    waiting.add(("n", "x"))
    waiting.served(("n", "x"))
    waiting.scheduled(("n", "x"))
    waiting.scheduled(("n", "never"))
    assert over == [True]
    clock.now += PAUSE
    waiting.add(("n", "x"))  # the scheduler says something else, and then the same again
    assert not waiting.held()
    assert not waiting.take_turn(("n", "x"))


def test_pools_go_on_when_only_those_wait_whose_time_is_over(clock: Clock) -> None:
    waiting, over = Waiting(), []
    waiting.on_over = lambda: over.append(True)
    waiting.add(("n", "huge"))
    clock.now += HOLD
    waiting.add(("n", "x"))
    waiting.discard(("n", "x"))
    assert over == [True]
    waiting.discard(("n", "huge"))
    assert over == [True]  # it held nothing


def test_warm_pods_are_deleted_once_for_a_sandbox(clock: Clock) -> None:
    """Tried again only while nothing was deleted: each of those that were chosen was claimed meanwhile."""
    waiting = Waiting()
    waiting.add(("n", "x"))
    assert waiting.take_turn(("n", "x"))
    assert not waiting.take_turn(("n", "x"))
    clock.now += PAUSE
    assert waiting.take_turn(("n", "x"))
    waiting.served(("n", "x"))
    clock.now += 100 * PAUSE
    waiting.add(("n", "x"))
    assert not waiting.take_turn(("n", "x"))
    waiting.discard(("n", "x"))
    waiting.add(("n", "x"))
    assert waiting.take_turn(("n", "x"))  # another of the same name


GVISOR = {"runtime": "gvisor"}
TAINTED = [{"key": "sandboxed", "operator": "Exists", "effect": "NoSchedule"}]


@pytest.mark.parametrize(
    ("wanted", "placed", "helps"),
    [
        ({}, {}, True),
        ({}, {"node_selector": GVISOR}, True),  # a node with more labels than are asked for
        ({"node_selector": GVISOR}, {}, False),
        ({"node_selector": GVISOR}, {"node_selector": {"runtime": "runc"}}, False),
        ({"node_selector": GVISOR}, {"node_selector": {**GVISOR, "for": "us"}}, True),
        ({}, {"tolerations": TAINTED}, False),  # the node may have what only that pod tolerates
        ({"tolerations": TAINTED}, {}, True),
        ({"tolerations": [*TAINTED, {"operator": "Exists"}]}, {"tolerations": TAINTED}, True),
    ],
)
def test_only_nodes_that_could_take_the_pod_are_emptied(
    wanted: dict[str, Any], placed: dict[str, Any], helps: bool
) -> None:
    """A RuntimeClass's node selector and tolerations are in the pods that were made with it."""
    pod = Pod(Metadata(name="cold"), PodSpec(**wanted))
    other = Pod(Metadata(name="warm"), PodSpec(node_name="a", **placed))
    queued = Pod(Metadata(name="queued"), PodSpec(**wanted))
    assert nodes_for(pod, [other, queued]) == ({"a"} if helps else set())


class Server:
    """An API server that knows what was deleted from it."""

    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.answers: dict[str, bool | Exception] = {}  # otherwise: True

        self.now: dict[str, WarmPod] = {}  # by name: as it is, where that is not as the operator knows it

    async def get(self, kind: Any, name: str, namespace: str) -> WarmPod:
        return self.now[name]

    async def delete(self, kind: Any, name: str, namespace: str, *, uid: str, resource_version: str) -> bool:
        known = self.now.get(name)
        answer = self.answers.get(name, True)
        if known is not None and resource_version != known.metadata.resource_version:
            answer = Conflict("another resource version")
        if isinstance(answer, Exception):
            raise answer
        if answer:
            self.deleted.append(name)
        return answer


def actions_of(server: Server, waiting: Waiting, folder: Path, *pods: Pod) -> Actions:
    """What an operator does with these warm pods, of which nobody has claimed one."""
    client = cast(KubeClient, server)
    caches = Caches(
        sandboxes=Informer(client, SANDBOX, ["n"]),
        warm_pods=Informer(client, WARMPOD, ["pools"]),
        pods=Informer(client, POD, ["n", "pools"]),
        profiles=Informer(client, PROFILE, ["n"]),
        runtimes=Informer(client, RUNTIME),
        warm_pools=Informer(client, WARMPOOL, ["pools"]),
    )
    for pod in pods:
        caches.pods.observe(pod)
        name = pod.metadata.name
        meta = Metadata(name=name, namespace="pools", uid=name, resource_version="1")
        caches.warm_pods.observe(WarmPod(meta, WarmPodSpec(NamedObject("pool", "pools"))))
    key = folder / "key"
    key.write_text("k" * 32)
    settings = Settings(system_namespace="system", key_file=str(key), gateway_url="http://gateway")
    return Actions(client, caches, cast(Observer, None), cast(Claims, None), settings, waiting)


def warm(name: str, node: str = "a", **spec: Any) -> Pod:
    made = {MADE_AS: '{"resources": {"cpu": "1", "memory": "1Gi"}}'}
    meta = Metadata(name=name, namespace="pools", uid=name, resource_version="1", annotations=made)
    return Pod(meta, PodSpec(node_name=node, **spec))


def waits(name: str, cpu: str, **spec: Any) -> Observed:
    sandbox = Sandbox(
        Metadata(name=name, namespace="n"), SandboxSpec("python:3.11", resources=Resources(cpu=cpu))
    )
    return Observed(
        sandbox=sandbox,
        now=datetime.now(UTC),
        settings=cast(Settings, None),
        pod=Pod(Metadata(name=name, namespace="n"), PodSpec(**spec)),
    )


async def give_way(actions: Actions, waiting: Waiting, seen: Observed) -> None:
    waiting.add(key_of(seen.sandbox))
    await actions.apply(seen, GiveWay())


async def test_what_never_fits_empties_one_node_once(clock: Clock, tmp_path: Path) -> None:
    server, waiting = Server(), Waiting()
    pods = [warm(f"{node}{count}", node) for node in "ab" for count in "12"]
    actions = actions_of(server, waiting, tmp_path, *pods)
    for _ in range(3):
        await give_way(actions, waiting, waits("huge", "4"))
        clock.now += PAUSE
    assert len(server.deleted) == 2
    assert len({name[0] for name in server.deleted}) == 1
    await give_way(actions, waiting, waits("other", "1"))
    assert len(server.deleted) == 3


def unclaimed(
    name: str, version: str, born: datetime | None = None, claim: WarmPodClaim | None = None
) -> WarmPod:
    meta = Metadata(name=name, namespace="pools", uid=name, resource_version=version, creation_timestamp=born)
    return WarmPod(meta, WarmPodSpec(NamedObject("pool", "pools"), claim=claim))


async def test_one_whose_status_was_just_written_gives_way(clock: Clock, tmp_path: Path) -> None:
    """Otherwise it takes the room that the others made: a pool's replacement of one that was claimed."""
    server, waiting = Server(), Waiting()
    actions = actions_of(server, waiting, tmp_path, warm("placed"), warm("queued", ""), warm("taken", ""))
    server.now["queued"] = unclaimed("queued", "2")
    claim = WarmPodClaim("u", NamedObject("somebody", "n"), datetime.now(UTC))
    server.now["taken"] = unclaimed("taken", "2", claim=claim)
    await give_way(actions, waiting, waits("sandbox", "1"))
    assert sorted(server.deleted) == ["placed", "queued"]


async def test_what_a_pool_was_about_to_make_gives_way(clock: Clock, tmp_path: Path) -> None:
    server, waiting = Server(), Waiting()
    actions = actions_of(server, waiting, tmp_path, warm("old1"), warm("old2"))
    known = actions._caches.warm_pods
    seen, born = waits("sandbox", "1"), datetime.now(UTC)
    seen.sandbox.metadata.creation_timestamp = born
    known.observe(unclaimed("podless", "1"))
    await give_way(actions, waiting, seen)
    assert len(server.deleted) == 2
    assert "podless" in server.deleted

    known.observe(unclaimed("new", "1", born + timedelta(seconds=1)))
    await give_way(actions, waiting, seen)  # at once, and not after a pause
    assert server.deleted[2:] == ["new"]
    clock.now += HOLD  # what never fits costs others nothing any more
    known.observe(unclaimed("newer", "1", born + timedelta(seconds=2)))
    await give_way(actions, waiting, seen)
    assert server.deleted[2:] == ["new"]


@pytest.mark.parametrize("answer", [Conflict("claimed meanwhile"), False])
async def test_who_came_too_late_for_all_of_them_has_another_turn(
    clock: Clock, tmp_path: Path, answer: bool | Exception
) -> None:
    server, waiting = Server(), Waiting()
    server.answers["x"] = answer
    server.now["x"] = unclaimed("x", "1")
    actions = actions_of(server, waiting, tmp_path, warm("x"))
    await give_way(actions, waiting, waits("late", "1"))
    assert not server.deleted
    server.answers.clear()
    clock.now += PAUSE
    await give_way(actions, waiting, waits("late", "1"))
    assert server.deleted == ["x"]


async def test_what_its_runtime_class_keeps_from_a_node_deletes_nothing_there(
    clock: Clock, tmp_path: Path
) -> None:
    server, waiting = Server(), Waiting()
    plain, gvisor = warm("plain"), warm("gvisor", "b", node_selector=GVISOR)
    actions = actions_of(server, waiting, tmp_path, plain, gvisor)
    await give_way(actions, waiting, waits("high", "1", node_selector=GVISOR))
    assert server.deleted == ["gvisor"]
