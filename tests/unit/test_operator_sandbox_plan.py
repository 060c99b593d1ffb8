"""Whatever happens to a Sandbox, and wherever its operators are cut short, it ends up true."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Forbidden, NotFound
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import POD, PROFILE, RUNTIME, SANDBOX, WARMPOD, WARMPOOL, Kind
from llmsafespace_kube.resources.kubernetes import (
    Condition,
    ContainerState,
    ContainerStatus,
    ContainerTerminated,
    Metadata,
    OwnerReference,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
)
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import (
    NamedObject,
    Sandbox,
    SandboxSpec,
    SandboxStatus,
    WarmPod,
    WarmPodClaim,
    WarmPodClaimed,
    WarmPodSpec,
    WarmPodStatus,
)
from llmsafespace_operator.sandbox import plan as plans
from llmsafespace_operator.sandbox import status
from llmsafespace_operator.sandbox.observe import Caches, Observer, chosen
from llmsafespace_operator.sandbox.plan import Observed, plan
from llmsafespace_operator.sandbox.turns import Turns

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(system_namespace="system", key_file="key", gateway_url="http://gateway/")
UID = "11111111-2222-3333-4444-555555555555"
UIDS = itertools.count()
OURS = "sb-0123456789abcdef0123"
NAMESPACE, POOLS = "agent-sandboxes", "warm-pools"


class Stale(Exception):
    """The API server's 409."""


class Cut(Exception):
    """The operator is killed."""


class World:
    """An API server with one Sandbox, a few warm pods, and a garbage collector."""

    def __init__(self, name: str) -> None:
        self.now = START
        self.name = name
        self.id = names.sandbox_id(name, UID)
        self.version = 1
        self.sandbox: Sandbox | None = None
        self.warm_pods: dict[str, WarmPod] = {}
        self.pods: dict[str, Pod] = {}
        self.bound: set[str] = set()  # uids of pods whose agents are bound
        self.served: set[str] = set()  # uids of pods that a Running status has named
        self.obstacle: status.Obstacle | None = None

    def make(self, spec: SandboxSpec, *finalizers: str) -> None:
        meta = Metadata(
            name=self.name,
            namespace=NAMESPACE,
            uid=UID,
            resource_version="1",
            creation_timestamp=self.now,
            finalizers=list(finalizers),
        )
        self.sandbox = Sandbox(meta, spec)

    def offer(self) -> None:
        """A warm pod becomes ready."""
        name = f"warm-{len(self.warm_pods)}"
        uid = f"uid-{name}"
        pod = self.pods[name] = ready_pod(name, POOLS, uid, self.now)
        where = WarmPodStatus(phase="Ready", pod_name=name, pod_namespace=POOLS, pod_ip=address(pod))
        meta = Metadata(name=name, namespace=POOLS, uid=uid)
        self.warm_pods[name] = WarmPod(meta, WarmPodSpec(NamedObject("pool", POOLS)), where)

    def claim(self) -> str | None:
        """A claim as claims.claim makes it; the name of the warm pod."""
        for name, one in self.warm_pods.items():
            if one.spec.claim is None:
                claim = WarmPodClaim(self.id, NamedObject(self.name, NAMESPACE), self.now)
                spec = msgspec.structs.replace(one.spec, claim=claim)
                self.warm_pods[name] = msgspec.structs.replace(one, spec=spec)
                return name
        return None

    def observe(self) -> Observed | None:
        if self.sandbox is None:
            return None
        mine = [one for one in self.warm_pods.values() if one.spec.claim is not None]
        warm_pod, surplus = chosen(self.sandbox, mine)
        name = warm_pod.status.pod_name if warm_pod is not None else self.name
        return Observed(
            sandbox=self.sandbox,
            now=self.now,
            settings=SETTINGS,
            warm_pod=warm_pod,
            surplus=surplus,
            pod=self.pods.get(name),
            runtime="python:3.11",
            obstacle=self.obstacle,
        )

    def carry_out(self, seen: Observed, cut_after: int = 1_000) -> plans.Plan:
        """What an operator that sees this does, until it is killed."""
        found = plan(seen)
        for stage in found.stages:
            for action in stage:
                if cut_after == 0:
                    raise Cut
                cut_after -= 1
                self.apply(seen, action)
        return found

    def apply(self, seen: Observed, action: plans.Action) -> None:
        match action:
            case plans.AddFinalizer():
                self._write(seen, finalizers=[names.SANDBOX_FINALIZER])
            case plans.RemoveFinalizer():
                self._write(seen, finalizers=[])
            case plans.Write(status=wanted):
                self._write(seen, status=wanted)
                if wanted.phase == "Running":
                    assert seen.pod is not None
                    assert names.made_by_gateway(self.name) or seen.pod.metadata.uid in self.bound
                    self.served.add(seen.pod.metadata.uid)
            case plans.Claim():
                if self.claim() is None:
                    self._write(seen, status=status.cold(seen.sandbox, "empty", self.now))
            case plans.StartPod(deadline=deadline):
                self.pods.setdefault(self.name, starting_pod(self.name, NAMESPACE, UID, self.now, deadline))
            case plans.Bind():
                assert seen.pod is not None
                if seen.pod.metadata.name not in self.pods:
                    raise Stale
                self.bound.add(seen.pod.metadata.uid)
            case plans.Assign(warm_pod=one):
                now = self._warm(one)
                assigned = msgspec.structs.replace(now.status, phase="Assigned")
                self.warm_pods[one.metadata.name] = msgspec.structs.replace(now, status=assigned)
            case plans.LimitPod(pod=pod, deadline=deadline):
                present = self.pods.get(pod.metadata.name)
                if present is None:
                    raise Stale
                spec = msgspec.structs.replace(present.spec, active_deadline_seconds=deadline)
                self.pods[pod.metadata.name] = msgspec.structs.replace(present, spec=spec)
            case plans.DeleteWarmPod(warm_pod=one):
                self.warm_pods.pop(one.metadata.name, None)
            case plans.DeletePod(pod=pod):
                self.pods.pop(pod.metadata.name, None)
            case plans.DeleteSandbox():
                self.delete()
        self.collect()

    def delete(self) -> None:
        """As kubectl delete does."""
        if self.sandbox is not None and self.sandbox.metadata.deletion_timestamp is None:
            self._set(deletion_timestamp=self.now)
            self.collect()

    def collect(self) -> None:
        """What the API server and the garbage collector do by themselves."""
        meta = self.sandbox.metadata if self.sandbox is not None else None
        if meta is not None and meta.deletion_timestamp is not None and not meta.finalizers:
            self.sandbox = None
        owners = {one.metadata.uid for one in self.warm_pods.values()} | ({UID} if self.sandbox else set())
        self.pods = {name: pod for name, pod in self.pods.items() if owner(pod) in owners}

    def reap(self) -> None:
        """What the operator does about WarmPods that were claimed for a Sandbox that is not there."""
        if self.sandbox is None:
            self.warm_pods = {name: one for name, one in self.warm_pods.items() if one.spec.claim is None}
            self.collect()

    def claimed(self) -> list[str]:
        return [name for name, one in self.warm_pods.items() if one.spec.claim is not None]

    def _warm(self, one: WarmPod) -> WarmPod:
        if one.metadata.name not in self.warm_pods:
            raise Stale
        return self.warm_pods[one.metadata.name]

    def _write(self, seen: Observed, **changes: Any) -> None:
        if (
            self.sandbox is None
            or self.sandbox.metadata.resource_version != seen.sandbox.metadata.resource_version
        ):
            raise Stale
        if "status" in changes:
            self.sandbox = msgspec.structs.replace(self.sandbox, status=changes.pop("status"))
        self._set(**changes)

    def _set(self, **changes: Any) -> None:
        assert self.sandbox is not None
        self.version += 1
        meta = msgspec.structs.replace(self.sandbox.metadata, resource_version=str(self.version), **changes)
        self.sandbox = msgspec.structs.replace(self.sandbox, metadata=meta)


def owner(pod: Pod) -> str:
    return pod.metadata.owner_references[0].uid


def starting_pod(name: str, namespace: str, uid: str, now: datetime, deadline: int | None = None) -> Pod:
    reference = OwnerReference("v1", "Owner", "owner", uid)
    meta = Metadata(
        name=name,
        namespace=namespace,
        uid=str(next(UIDS)),
        creation_timestamp=now,
        owner_references=[reference],
    )
    return Pod(meta, PodSpec(active_deadline_seconds=deadline), PodStatus())


def ready_pod(name: str, namespace: str, uid: str, now: datetime) -> Pod:
    return made_ready(starting_pod(name, namespace, uid, now), now)


def made_ready(pod: Pod, now: datetime) -> Pod:
    state = PodStatus(
        phase="Running", pod_ip=address(pod), start_time=now, conditions=[PodCondition("Ready", "True")]
    )
    return msgspec.structs.replace(pod, status=state)


def address(pod: Pod) -> str:
    return f"10.{pod.metadata.uid}"


def ended_pod(pod: Pod, exit_code: int) -> Pod:
    state = ContainerState(terminated=ContainerTerminated(exit_code=exit_code))
    phase = "Succeeded" if exit_code == 0 else "Failed"
    return msgspec.structs.replace(
        pod, status=PodStatus(phase=phase, container_statuses=[ContainerStatus(state=state)])
    )


def kubectl_made(**spec: Any) -> World:
    world = World("mine")
    world.make(SandboxSpec(runtime="python:3.11", **spec))
    return world


def gateway_made(*, warm: bool) -> World:
    world = World(OURS)
    claimed = None
    if warm:
        world.offer()
        claimed = WarmPodClaimed(str(world.claim()), POOLS, world.id)
    world.make(SandboxSpec(runtime="python:3.11", warm_pod=claimed), names.SANDBOX_FINALIZER)
    return world


def settle(world: World, *, helpful: bool = True) -> plans.Plan:
    """Rounds of one operator until it has nothing to do; pods become ready meanwhile."""
    for _ in range(30):
        if helpful:
            for name, pod in world.pods.items():
                if pod.status.phase == "Pending":
                    world.pods[name] = made_ready(pod, world.now)
        world.reap()
        seen = world.observe()
        if seen is None:
            return plans.Plan()
        found = world.carry_out(seen)
        if not any(found.stages) and found.again != 0.0:
            return found
    raise AssertionError(f"does not settle: {world.sandbox}")


EVENTS = st.one_of(
    st.tuples(st.just("rounds")),
    st.tuples(st.just("round that is cut"), st.integers(0, 6)),
    st.tuples(st.just("look"), st.integers(0, 1)),
    st.tuples(st.just("act on the last look"), st.integers(0, 1)),
    st.tuples(
        st.sampled_from(
            [
                "offer",
                "pod ready",
                "pod ends",
                "pod deleted",
                "warm pod deleted",
                "deleted",
                "obstacle",
                "way",
            ]
        )
    ),
    st.tuples(st.just("time passes"), st.sampled_from([1, 100, 400])),
)


@pytest.mark.parametrize(
    "make", [kubectl_made, lambda: gateway_made(warm=True), lambda: gateway_made(warm=False)]
)
@given(events=st.lists(EVENTS, max_size=25))
@example(events=[("look", 0), ("rounds",), ("pod deleted",), ("act on the last look", 0)])
@example(events=[("rounds",), ("second claim",), ("round that is cut", 0)])
@settings(max_examples=200, deadline=None)
def test_whatever_happens_one_pod_serves_and_nothing_is_left(
    make: Any, events: list[tuple[Any, ...]]
) -> None:
    world: World = make()
    looks: list[Observed | None] = [None, None]
    for event in events:
        happen(world, event, looks)
        assert len(world.served) <= 1, "two pods were a sandbox's"
    world.obstacle = None
    settle(world)
    living = [*world.claimed(), *(name for name in world.pods if name == world.name)]
    if world.sandbox is None:
        assert living == []
        return
    now = world.sandbox.status
    if now.end:
        assert living == [], "an ended sandbox has a pod"
    else:
        assert now.phase == "Running"
        assert living == [now.pod_name]
        assert {world.pods[now.pod_name].metadata.uid} == world.served
    world.now += timedelta(days=30)
    world.delete()
    settle(world)
    assert world.observe() is None
    assert world.claimed() == []
    assert world.name not in world.pods


def happen(world: World, event: tuple[Any, ...], looks: list[Observed | None]) -> None:
    match event:
        case ("rounds",):
            settle(world)
        case ("round that is cut", cut_after):
            act(world, world.observe(), cut_after)
        case ("look", who):
            looks[who] = world.observe()
        case ("act on the last look", who):
            act(world, looks[who])
        case ("offer",):
            world.offer()
        case ("second claim",):  # by somebody who lost the answer to an earlier one, or looks at old news
            world.offer()
            world.claim()
        case ("pod ready",):
            world.pods = {name: made_ready(pod, world.now) for name, pod in world.pods.items()}
        case ("pod ends",):
            world.pods = {name: ended_pod(pod, 11) for name, pod in world.pods.items()}
        case ("pod deleted",):
            world.pods.clear()
        case ("warm pod deleted",):
            for name in world.claimed()[:1]:
                del world.warm_pods[name]
            world.collect()
        case ("deleted",):
            world.delete()
        case ("obstacle",):
            world.obstacle = status.Obstacle("RuntimeUnavailable", "there is none")
        case ("way",):
            world.obstacle = None
        case ("time passes", seconds):
            world.now += timedelta(seconds=seconds)


def act(world: World, seen: Observed | None, cut_after: int = 1_000) -> None:
    if seen is not None:
        with suppress(Stale, Cut):
            world.carry_out(seen, cut_after)


def test_warm_start_of_a_gateway_takes_one_round_of_three_writes() -> None:
    world = gateway_made(warm=True)
    seen = world.observe()
    assert seen is not None
    (stage,) = plan(seen).stages
    assert {type(action) for action in stage} == {plans.Assign, plans.LimitPod, plans.Write}
    world.carry_out(seen)
    assert not any(settle(world).stages)


def test_sandbox_of_kubectl_is_as_one_of_the_api() -> None:
    world = kubectl_made()
    world.offer()
    settle(world)
    assert world.sandbox is not None
    now = world.sandbox.status
    assert now.sandbox_id == names.sandbox_id("mine", UID) == "sb-11111111222233334444"
    assert now.endpoint == f"http://gateway/api/v1/sandboxes/{now.sandbox_id}"
    assert (now.start_kind, now.pod_name) == ("warm", "warm-0")
    assert now.pod_ip == address(world.pods["warm-0"])
    assert now.warm_pod_ref == NamedObject("warm-0", POOLS)
    assert world.warm_pods["warm-0"].status.phase == "Assigned"


def test_cold_start_says_why() -> None:
    world = kubectl_made()
    settle(world)
    assert world.sandbox is not None
    now = world.sandbox.status
    assert (now.start_kind, now.start_reason) == ("cold", "empty")
    assert [(one.type, one.status, one.message) for one in now.conditions] == [
        ("Warm", "False", "empty"),
        ("Ready", "True", ""),
    ]


def test_deadline_leaves_the_whole_lifetime_from_the_claim_on() -> None:
    world = gateway_made(warm=True)
    world.now += timedelta(hours=2)
    settle(world)
    pod = world.pods["warm-0"]
    assert pod.spec.active_deadline_seconds == 2 * 3600 + 86400 + 60


def test_what_cannot_start_waits_with_the_reason_and_then_fails() -> None:
    world = kubectl_made()
    world.obstacle = status.Obstacle("RuntimeUnavailable", "there is no runtime cobol")
    waiting = settle(world)
    assert status_of(world).phase == "Pending"
    assert status_of(world).conditions[0].message == "there is no runtime cobol"
    assert waiting.again == SETTINGS.start_timeout
    world.now += timedelta(seconds=SETTINGS.start_timeout)
    settle(world)
    failed = status_of(world)
    assert (failed.phase, failed.end) == ("Failed", "failed")
    assert "there is no runtime cobol" in failed.message


def test_old_warm_pod_that_is_not_reached_at_once_is_tried_again() -> None:
    world = kubectl_made()
    world.offer()
    world.claim()
    world.now += timedelta(hours=2)
    seen = world.observe()
    assert seen is not None
    found = plans.blocked(seen, status.Obstacle("AgentUnreachable", "its agent does not answer"))
    ((action,),) = found.stages
    assert isinstance(action, plans.Write)
    assert action.status.end == ""
    assert found.again == SETTINGS.start_timeout


def without_node(pod: Pod, message: str = "0/1 nodes are available: 1 Insufficient cpu.") -> Pod:
    condition = PodCondition("PodScheduled", "False", "Unschedulable", message)
    return msgspec.structs.replace(pod, status=PodStatus(conditions=[condition]))


def on_node(pod: Pod, now: datetime) -> Pod:
    scheduled = PodCondition("PodScheduled", "True", last_transition_time=now)
    spec = msgspec.structs.replace(pod.spec, node_name="node")
    return msgspec.structs.replace(pod, spec=spec, status=PodStatus(conditions=[scheduled]))


def observed(world: World) -> Observed:
    seen = world.observe()
    assert seen is not None
    return seen


def status_of(world: World) -> SandboxStatus:
    return observed(world).sandbox.status


def end_condition(world: World) -> Condition:
    return next(one for one in status_of(world).conditions if one.type == "Ready")


@pytest.mark.parametrize("warm", [True, False])
def test_what_outlives_its_lifetime_is_ended_here(warm: bool) -> None:
    """Whatever its agent does: its pod is deleted, and with it every process."""
    world = gateway_made(warm=warm)
    found = settle(world)
    assert world.sandbox is not None
    lifetime = world.sandbox.spec.max_lifetime
    assert found.again == pytest.approx(lifetime + plans.LATE)
    world.now += timedelta(seconds=lifetime + plans.LATE - 1)
    settle(world)
    assert not status_of(world).end
    world.now += timedelta(seconds=1)
    settle(world)
    assert status_of(world).end == "expired"
    assert not world.pods


@pytest.mark.parametrize(
    ("said", "left"), [(600, 600), (10**6, 86400), ("soon", 86400), ("2026-01-01T00:00:00", 86400)]
)
def test_a_lifetime_that_was_shortened_is_kept_and_never_lengthened(said: Any, left: int) -> None:
    world = gateway_made(warm=True)
    settle(world)
    assert world.sandbox is not None
    ends = (world.now + timedelta(seconds=said)).isoformat() if isinstance(said, int) else said
    world.sandbox.metadata.annotations = {names.ENDS_AT: ends}
    assert plan(observed(world)).again == pytest.approx(left + plans.LATE)


def test_a_pod_that_no_node_takes_is_given_up_soon_and_nothing_is_left() -> None:
    """After scheduleTimeout, with the scheduler's words; until then warm pods give way."""
    world = gateway_made(warm=False)
    settle(world, helpful=False)
    world.pods[OURS] = without_node(world.pods[OURS])
    found = plan(observed(world))
    assert any(isinstance(action, plans.GiveWay) for stage in found.stages for action in stage)
    assert found.again is not None
    assert found.again <= SETTINGS.schedule_timeout
    world.carry_out(observed(world))
    assert end_condition(world).reason == "Unschedulable"
    world.now += timedelta(seconds=SETTINGS.schedule_timeout)
    settle(world, helpful=False)
    assert world.sandbox is not None
    assert world.sandbox.status.end == "failed"
    assert "within 15 s" in world.sandbox.status.message
    assert "Insufficient cpu" in world.sandbox.status.message
    assert end_condition(world).reason == "Unschedulable"
    assert not world.pods


@pytest.mark.parametrize(
    ("message", "helps"),
    [
        ("0/3 nodes are available: 3 Insufficient cpu.", True),
        ("0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory.", True),
        ("0/3 nodes are available: 3 Insufficient ephemeral-storage. preemption: not eligible", True),
        ("0/3 nodes are available: 3 Too many pods.", True),
        ("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.", False),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {a: b}.", False),
        ("0/3 nodes are available: 3 Insufficient example.com/gpu.", False),
        ("no nodes available to schedule pods", False),
        ("", False),
    ],
)
def test_warm_pods_go_only_where_room_is_what_is_missing(message: str, helps: bool) -> None:
    """A taint, a selector or a device is not freed by deleting them."""
    world = gateway_made(warm=False)
    settle(world, helpful=False)
    world.pods[OURS] = without_node(world.pods[OURS], message)
    found = plan(observed(world))
    assert any(isinstance(action, plans.GiveWay) for stage in found.stages for action in stage) is helps
    world.carry_out(observed(world))
    assert end_condition(world).reason == "Unschedulable"


def carry_out_blocked(world: World, reason: str) -> plans.Plan:
    seen = observed(world)
    found = plans.blocked(seen, status.Obstacle(reason, "why"))
    for action in (each for stage in found.stages for each in stage):
        world.apply(seen, action)
    return found


def test_each_obstacle_has_its_own_time() -> None:
    """One refusal after a long wait for its turn must not fail it at once, nor the look after that."""
    world = gateway_made(warm=False)
    carry_out_blocked(world, "ColdStartLimit")
    world.now += timedelta(seconds=SETTINGS.schedule_timeout + 5)
    assert carry_out_blocked(world, "PodRefused").again == pytest.approx(SETTINGS.schedule_timeout)
    world.now += timedelta(seconds=SETTINGS.schedule_timeout - 1)
    assert carry_out_blocked(world, "PodRefused").again == pytest.approx(1)
    assert not observed(world).sandbox.status.end
    world.now += timedelta(seconds=1)
    carry_out_blocked(world, "PodRefused")
    assert observed(world).sandbox.status.end == "failed"


@pytest.mark.parametrize("reason", ["PodRefused", "NameTaken"])
def test_to_wait_for_a_turn_between_refusals_gives_no_more_time(reason: str) -> None:
    world = gateway_made(warm=False)
    carry_out_blocked(world, reason)
    limit = SETTINGS.schedule_timeout if reason == "PodRefused" else SETTINGS.start_timeout
    for _ in range(2):
        world.now += timedelta(seconds=limit / 2)
        found = plan(msgspec.structs.replace(observed(world), turn=False))
        for action in (each for stage in found.stages for each in stage):
            world.apply(observed(world), action)
        assert end_condition(world).reason == reason
    assert observed(world).sandbox.status.end == "failed"


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        ("PodRefused", SETTINGS.schedule_timeout),  # a ResourceQuota of the cluster that is full
        ("ColdStartLimit", SETTINGS.start_timeout),
        ("RuntimeUnavailable", SETTINGS.start_timeout),
    ],
)
def test_room_is_not_waited_for_as_long_as_what_is_under_way(reason: str, limit: float) -> None:
    world = gateway_made(warm=False)
    obstacle = status.Obstacle(reason, "why")
    seen = observed(world)
    for action in (each for stage in plans.blocked(seen, obstacle).stages for each in stage):
        world.apply(seen, action)
    world.now += timedelta(seconds=limit - 1)
    assert plans.blocked(observed(world), obstacle).again == pytest.approx(1)
    world.now += timedelta(seconds=1)
    seen = observed(world)
    for action in (each for stage in plans.blocked(seen, obstacle).stages for each in stage):
        world.apply(seen, action)
    assert world.sandbox is not None
    assert world.sandbox.status.end == "failed"


def test_what_the_kubelet_says_in_events_only_is_passed_on() -> None:
    world = gateway_made(warm=False)
    settle(world, helpful=False)
    world.pods[OURS] = on_node(world.pods[OURS], world.now)
    seen = msgspec.structs.replace(observed(world), complaint="FailedCreatePodSandBox: no runtime for runsc")
    world.carry_out(seen)
    assert "no runtime for runsc" in end_condition(world).message


def test_a_pod_that_no_scheduler_looks_at_is_given_up_as_soon() -> None:
    world = gateway_made(warm=False)
    settle(world, helpful=False)
    found = plan(observed(world))
    assert not any(isinstance(action, plans.GiveWay) for stage in found.stages for action in stage)
    world.now += timedelta(seconds=SETTINGS.schedule_timeout)
    settle(world, helpful=False)
    assert world.sandbox is not None
    assert "scheduler" in world.sandbox.status.message


def test_a_pod_with_a_node_has_all_of_start_timeout_however_long_it_waited_for_one() -> None:
    """Where nodes are added on demand."""
    world = gateway_made(warm=False)
    settle(world, helpful=False)
    world.now += timedelta(seconds=SETTINGS.schedule_timeout - 1)
    world.pods[OURS] = on_node(world.pods[OURS], world.now)
    world.now += timedelta(seconds=SETTINGS.start_timeout - 1)
    settle(world, helpful=False)
    assert not status_of(world).end
    world.now += timedelta(seconds=1)
    settle(world, helpful=False)
    assert status_of(world).end == "failed"
    assert "within 180 s" in status_of(world).message


def test_time_without_an_operator_fails_nobody() -> None:
    world = kubectl_made()
    world.now += timedelta(days=1)
    settle(world)
    assert world.sandbox is not None
    assert world.sandbox.status.phase == "Running"


def test_pod_that_does_not_get_ready_fails_its_sandbox() -> None:
    world = kubectl_made()
    settle(world, helpful=False)
    assert world.sandbox is not None
    assert world.sandbox.status.phase == "Creating"
    world.now += timedelta(seconds=SETTINGS.start_timeout)
    settle(world, helpful=False)
    assert world.sandbox.status.end == "failed"
    assert world.pods == {}


@pytest.mark.parametrize(
    ("exit_code", "phase", "end"),
    [
        (0, "Terminated", "terminated"),
        (10, "Terminated", "expired"),
        (11, "Failed", "oom"),
        (1, "Failed", "failed"),
    ],
)
def test_agent_says_how_its_sandbox_ended(exit_code: int, phase: str, end: str) -> None:
    world = gateway_made(warm=True)
    settle(world)
    world.pods["warm-0"] = ended_pod(world.pods["warm-0"], exit_code)
    left = settle(world)
    assert world.sandbox is not None
    assert (world.sandbox.status.phase, world.sandbox.status.end) == (phase, end)
    assert world.claimed() == []
    assert left.again == SETTINGS.sandbox_retention
    world.now += timedelta(seconds=SETTINGS.sandbox_retention)
    settle(world)
    assert world.sandbox is None


def test_claimed_pod_that_goes_before_anybody_looked_is_not_replaced() -> None:
    """Its gateway may have bound it."""
    world = gateway_made(warm=True)
    world.warm_pods.clear()
    world.collect()
    settle(world)
    assert world.sandbox is not None
    assert world.sandbox.status.end == "lost"
    assert world.pods == {}


@pytest.mark.parametrize("gone", ["pods", "warm_pods"])
def test_sandbox_whose_pod_or_warm_pod_is_deleted_is_lost(gone: str) -> None:
    world = gateway_made(warm=True)
    settle(world)
    getattr(world, gone).clear()
    world.collect()
    settle(world)
    assert world.sandbox is not None
    assert (world.sandbox.status.phase, world.sandbox.status.end) == ("Failed", "lost")


def test_cold_decision_is_not_gone_back_on() -> None:
    """An operator that still believes in a warm start claims a pod: that pod goes, the cold one stays."""
    world = kubectl_made()
    settle(world, helpful=False)
    world.offer()
    world.claim()
    settle(world)
    assert world.sandbox is not None
    assert world.sandbox.status.start_kind == "cold"
    assert world.claimed() == []
    assert list(world.pods) == ["mine"]


class TestTurns:
    first, second, third = ("n", "1"), ("n", "2"), ("n", "3")

    def test_those_that_wait_come_in_the_order_in_which_they_came(self) -> None:
        turns = Turns(1)
        assert turns.take(self.first)
        assert not turns.take(self.second)
        assert not turns.take(self.third)
        assert turns.take(self.first), "who has a turn keeps it"
        assert turns.leave(self.first) == [self.second]
        assert turns.take(self.second)
        assert turns.leave(self.second) == [self.third]

    def test_as_many_are_called_as_there_is_room_for(self) -> None:
        turns = Turns(2)
        assert turns.take(("n", "a"))
        assert turns.take(("n", "b"))
        for key in (self.first, self.second, self.third):
            assert not turns.take(key)
        turns.leave(("n", "a"))
        assert turns.leave(("n", "b")) == [self.first, self.second]

    def test_who_is_called_and_needs_no_turn_lets_the_next_one_go(self) -> None:
        turns = Turns(1)
        turns.take(self.first)
        turns.take(self.second)
        turns.take(self.third)
        assert turns.leave(self.first) == [self.second]
        assert turns.leave(self.second) == [self.third]

    def test_starts_under_way_count_after_a_handover(self) -> None:
        turns = Turns(1)
        turns.hold(self.first)
        turns.hold(self.second)
        assert not turns.take(self.third)
        assert turns.leave(self.first) == []
        assert turns.leave(self.second) == [self.third]


async def test_a_warm_pod_of_a_namespace_that_is_not_served_any_more_is_gone_unasked() -> None:
    class Server:
        async def get(self, kind: Kind[Any], *_: Any) -> None:
            raise NotFound("no such pod") if kind is POD else Forbidden("not in this namespace")

    client = cast(KubeClient, Server())
    caches = Caches(
        sandboxes=Informer(client, SANDBOX, [NAMESPACE]),
        warm_pods=Informer(client, WARMPOD, [POOLS]),
        pods=Informer(client, POD, [NAMESPACE, POOLS]),
        profiles=Informer(client, PROFILE, [NAMESPACE]),
        runtimes=Informer(client, RUNTIME),
        warm_pools=Informer(client, WARMPOOL, [POOLS]),
    )
    catalogue = Catalogue(caches.runtimes, caches.profiles, "system")
    settings = msgspec.structs.replace(SETTINGS, pool_namespaces=[POOLS])
    observer = Observer(client, caches, catalogue, settings)
    spec = SandboxSpec("python:3.11", warm_pod=WarmPodClaimed("one", "left-the-settings", OURS))
    sandbox = Sandbox(Metadata(name=OURS, namespace=NAMESPACE, uid=UID), spec)
    assert (await observer.observe(sandbox)).warm_pod is None
