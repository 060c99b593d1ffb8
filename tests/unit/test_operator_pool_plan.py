"""The pool planner: what it promises, over thousands of pools and over time, without any server."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsafespace_kube.resources.types import AutoScaling, WarmPoolSpec
from llmsafespace_operator.warmpool.plan import (
    BURST,
    Actions,
    Observed,
    Unclaimed,
    Wish,
    backoff,
    plan,
    wanted,
)


def pool(min_size: int = 2, **changes: Any) -> WarmPoolSpec:
    return WarmPoolSpec(runtime="python:3.11", min_size=min_size, **changes)


def ready(count: int, age: float = 1.0, **changes: Any) -> list[Unclaimed]:
    return [Unclaimed(f"r{n}-{age:g}", age, True, **changes) for n in range(count)]


def pending(count: int, **changes: Any) -> list[Unclaimed]:
    return [Unclaimed(f"p{n}", 1.0, False, **changes) for n in range(count)]


def scaled(**changes: Any) -> WarmPoolSpec:
    return pool(auto_scaling=AutoScaling(enabled=True, **changes))


# -- single plans ----------------------------------------------------------------------------------------


def test_an_empty_pool_is_filled_and_what_is_on_its_way_counts() -> None:
    assert plan(Observed(spec=pool(5))).create == 5
    assert plan(Observed(spec=pool(5), unclaimed=[*ready(2), *pending(2)])).create == 1


def test_what_is_claimed_is_refilled_also_when_the_pool_is_as_small_as_large() -> None:
    assert plan(Observed(spec=pool(3, max_size=3), unclaimed=ready(2), claimed=1)).create == 1


def test_surplus_goes_what_is_not_ready_first_then_the_oldest_then_what_was_made_by_hand() -> None:
    there = [*ready(1, 50, ours=False), *ready(1, 1), *ready(1, 9), *pending(1)]
    assert plan(Observed(spec=pool(3), unclaimed=there)).delete == ("p0",)
    assert plan(Observed(spec=pool(2), unclaimed=there)).delete == ("p0", "r0-9")
    assert plan(Observed(spec=pool(1), unclaimed=there)).delete == ("p0", "r0-9", "r0-1")


def test_what_was_made_by_hand_takes_a_place_once_it_is_ready() -> None:
    coming = [Unclaimed(name, age=0.0, ready=False, ours=False) for name in ("h0", "h1")]
    there = ready(2, 5)
    assert plan(Observed(spec=pool(2), unclaimed=[*there, *coming])).delete == ()
    come = [msgspec.structs.replace(one, ready=True) for one in coming]
    assert plan(Observed(spec=pool(2), unclaimed=[*there, *come])).delete == ("r0-5", "r1-5")
    full = plan(Observed(spec=pool(2, max_size=3), unclaimed=[*there, *coming]))
    assert full.delete == ("r0-5",)


def test_an_aged_one_stays_until_its_replacement_is_ready() -> None:
    spec = pool(1, ttl=100)
    first = plan(Observed(spec=spec, unclaimed=ready(1, 100)))
    assert (first.create, first.delete) == (1, ())
    assert plan(Observed(spec=spec, unclaimed=[*ready(1, 101), *pending(1)])).create == 0
    then = plan(Observed(spec=spec, unclaimed=[*ready(1, 102), *ready(1, 2)]))
    assert (then.create, then.delete) == (0, ("r0-102",))


def test_where_there_is_no_room_for_a_replacement_a_few_make_room_for_theirs() -> None:
    actions = plan(Observed(spec=pool(8, max_size=8, ttl=100), unclaimed=ready(8, 200)))
    assert (actions.create, len(actions.delete)) == (2, 2)


def test_nothing_makes_room_for_what_cannot_be_created() -> None:
    aged = ready(4, 200)
    assert plan(Observed(spec=pool(4, max_size=4, ttl=100), unclaimed=aged, may_create=False)).delete == ()
    failing = Observed(spec=pool(4, max_size=4, ttl=100), unclaimed=aged, now=5.0, retry_at=9.0)
    assert plan(failing).delete == ()


def test_ttl_zero_means_for_ever() -> None:
    actions = plan(Observed(spec=pool(1, ttl=0), unclaimed=ready(1, 1e6)))
    assert (actions.create, actions.delete, actions.look_at) == (0, (), None)


def test_a_changed_pool_waits_until_the_old_ones_are_used_or_replaces_them() -> None:
    there = ready(8, current=False)
    waits = plan(Observed(spec=pool(8), unclaimed=there))
    assert (waits.create, waits.delete) == (0, ())
    replaces = plan(Observed(spec=pool(8, update_strategy="Recreate"), unclaimed=there))
    assert (replaces.create, replaces.delete) == (2, ())


def test_old_ones_that_are_not_even_ready_go_at_once() -> None:
    for strategy in ("OnReplenish", "Recreate"):
        there = pending(3, current=False)
        actions = plan(Observed(spec=pool(3, update_strategy=strategy), unclaimed=there))
        assert (actions.create, actions.delete) == (3, ("p0", "p1", "p2"))


def test_nothing_is_created_while_starts_fail_or_nothing_can_start() -> None:
    waiting = plan(Observed(spec=pool(5), now=10.0, retry_at=40.0))
    assert (waiting.create, waiting.look_at) == (0, 40.0)
    assert plan(Observed(spec=pool(5), may_create=False)).create == 0


def test_attempts_that_fail_come_ever_more_seldom() -> None:
    assert [backoff(n) for n in (0, 1, 2, 5)] == [0, 2, 4, 32]
    assert backoff(1000) == 300


def test_a_burst_is_limited_and_goes_on_at_once() -> None:
    actions = plan(Observed(spec=pool(1000), now=5.0))
    assert (actions.create, actions.look_at) == (BURST, 5.0)


def test_autoscaling_holds_what_comes_while_a_replacement_starts() -> None:
    assert wanted(scaled(), claimed=0, rate=0.0, lead=4.0) == 2
    assert wanted(scaled(), claimed=0, rate=25.0, lead=4.0) == 130
    assert wanted(scaled(target_utilization=50), claimed=30, rate=0.0, lead=4.0) == 30
    assert wanted(pool(2), claimed=30, rate=25.0, lead=4.0) == 2


def test_a_pool_at_its_maximum_says_so() -> None:
    spec = scaled(target_utilization=50)
    spec.max_size = 4
    actions = plan(Observed(spec=spec, claimed=30))
    assert (actions.desired, actions.limited, actions.create) == (4, True, 4)
    assert not plan(Observed(spec=pool(2, max_size=2))).limited


def test_scaling_down_waits_until_nothing_wanted_more_for_long_enough() -> None:
    spec = scaled(scale_down_delay=300)
    high = plan(Observed(spec=spec, claimed=40, now=0.0))
    assert high.desired == 10
    later = plan(Observed(spec=spec, unclaimed=ready(10), now=299.0, wishes=high.wishes))
    assert (later.delete, later.look_at) == ((), 300.0)
    at_last = plan(Observed(spec=spec, unclaimed=ready(10), now=300.0, wishes=later.wishes))
    assert (len(at_last.delete), at_last.desired) == (8, 2)


def test_an_operator_that_knows_no_past_takes_nothing_away_at_first() -> None:
    first = plan(Observed(spec=scaled(scale_down_delay=60), unclaimed=ready(9), now=0.0))
    assert (first.delete, first.desired, first.look_at) == ((), 9, 60.0)


# -- any pool --------------------------------------------------------------------------------------------


@st.composite
def specs(draw: st.DrawFn) -> WarmPoolSpec:
    smallest = draw(st.integers(0, 40))
    return WarmPoolSpec(
        runtime="python:3.11",
        min_size=smallest,
        max_size=draw(st.sampled_from([0, smallest or 1, smallest + 1, smallest + 7])),
        ttl=draw(st.sampled_from([0, 10, 60])),
        update_strategy=draw(st.sampled_from(["OnReplenish", "Recreate"])),
        auto_scaling=AutoScaling(
            enabled=draw(st.booleans()),
            target_utilization=draw(st.integers(1, 100)),
            scale_down_delay=draw(st.sampled_from([0, 5, 30])),
        ),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    pods = st.tuples(st.floats(0, 100), st.booleans(), st.booleans(), st.booleans())
    unclaimed = [Unclaimed(f"w{n}", *each) for n, each in enumerate(draw(st.lists(pods, max_size=60)))]
    sizes = sorted(draw(st.lists(st.integers(0, 60), max_size=3, unique=True)), reverse=True)
    return Observed(
        spec=draw(specs()),
        unclaimed=unclaimed,
        claimed=draw(st.integers(0, 200)),
        rate=draw(st.floats(0, 50)),
        lead=draw(st.floats(0, 30)),
        now=100.0,
        wishes=draw(st.none() | st.just([Wish(90.0 + n, size) for n, size in enumerate(sizes)])),
        retry_at=draw(st.sampled_from([0.0, 100.0, 200.0])),
        may_create=draw(st.booleans()),
    )


@settings(max_examples=2000, deadline=None)
@given(observations())
def test_every_plan_keeps_the_promises(observed: Observed) -> None:
    actions = plan(observed)
    spec, before = observed.spec, {one.name: one for one in observed.unclaimed}
    left = [one for one in observed.unclaimed if one.name not in actions.delete]
    after = len(left) + actions.create

    assert set(actions.delete) <= before.keys()
    assert len(set(actions.delete)) == len(actions.delete)
    assert 0 <= actions.create <= BURST
    if spec.max_size:
        assert after <= spec.max_size
        assert actions.desired <= spec.max_size
    assert actions.desired >= min(spec.min_size, spec.max_size or math.inf)
    if observed.now < observed.retry_at or not observed.may_create:
        assert actions.create == 0
    else:
        assert after >= actions.desired or actions.create == BURST
    # What is ready goes only while enough others are, but for the few that make room for their replacement.
    taken = [before[name] for name in actions.delete if before[name].ready]
    if taken and not (spec.max_size and len(before) > spec.max_size):
        assert sum(one.ready for one in left) >= actions.desired - max(1, actions.desired // 4)
    # Nothing of the present make is taken to be made anew.
    if actions.create:
        assert not any(
            one.current and not (spec.ttl and one.age >= spec.ttl)
            for one in map(before.get, actions.delete)
            if one
        )
    if actions.look_at is not None:
        assert actions.look_at >= observed.now


# -- over time -------------------------------------------------------------------------------------------


class Pod(msgspec.Struct):
    name: str
    born: int
    ready_at: int
    make: int


class World:
    """A pool whose pods become ready after a while or fail, are claimed at random, and end."""

    def __init__(self, spec: WarmPoolSpec, seed: int, lead: int) -> None:
        self.spec = spec
        self.random = random.Random(seed)
        self.lead = lead
        self.now = 0
        self.make = 0
        self.unclaimed: list[Pod] = []
        self.claimed: list[int] = []  # when each ends
        self.made = 0
        self.failing = 0.0
        self.failures = 0
        self.retry_at = 0.0
        self.wishes: tuple[Wish, ...] | None = None
        self.arrivals: list[int] = []

    def observed(self) -> Observed:
        self.arrivals = [time for time in self.arrivals if time > self.now - 10]
        return Observed(
            spec=self.spec,
            unclaimed=[
                Unclaimed(one.name, self.now - one.born, one.ready_at <= self.now, one.make == self.make)
                for one in self.unclaimed
            ],
            claimed=len(self.claimed),
            rate=len(self.arrivals) / 10,
            lead=float(self.lead),
            now=float(self.now),
            wishes=self.wishes,
            retry_at=self.retry_at,
        )

    def step(self, claims: int) -> Actions:
        """A second passes: some end, some fail, some are claimed; then the planner acts."""
        self.now += 1
        self.claimed = [end for end in self.claimed if end > self.now]
        self._fail()
        able = [one for one in self.unclaimed if one.ready_at <= self.now]
        for one in self.random.sample(able, min(claims, len(able))):
            self.unclaimed.remove(one)
            self.claimed.append(self.now + self.random.randint(1, 20))
            self.arrivals.append(self.now)
        actions = plan(self.observed())
        self.wishes = actions.wishes
        assert set(actions.delete) <= {one.name for one in self.unclaimed}
        self.unclaimed = [one for one in self.unclaimed if one.name not in actions.delete]
        for _ in range(actions.create):
            self.made += 1
            self.unclaimed.append(Pod(f"w{self.made}", self.now, self.now + self.lead, self.make))
        return actions

    def _fail(self) -> None:
        starting = [one for one in self.unclaimed if one.ready_at > self.now]
        failed = [one for one in starting if self.random.random() < self.failing]
        self.unclaimed = [one for one in self.unclaimed if one not in failed]
        if failed and self.now >= self.retry_at:
            self.failures += 1
            self.retry_at = self.now + backoff(self.failures)
        if any(one.ready_at == self.now for one in self.unclaimed):
            self.failures, self.retry_at = 0, 0.0


@settings(max_examples=150, deadline=None)
@given(
    specs(),
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from(["", "", "", "make", "fail", "heal"])), max_size=80
    ),
)
def test_a_pool_settles_whatever_has_happened(
    spec: WarmPoolSpec, seed: int, lead: int, events: list[tuple[int, str]]
) -> None:
    world = World(spec, seed, lead)
    for claims, event in events:
        world.make += event == "make"
        world.failing = {"fail": 0.3, "heal": 0.0}.get(event, world.failing)
        world.step(claims)
        if spec.max_size:
            assert len(world.unclaimed) <= spec.max_size
    # Nothing happens any more but time: what fails is mended, claims end, the pool goes to its size.
    world.failing = 0.0
    spec.ttl = 0
    for _ in range(2 * 300 + 40 * (lead + 2)):
        world.step(0)
    size = min(spec.min_size, spec.max_size or math.inf)
    assert len(world.unclaimed) == size
    assert all(one.ready_at <= world.now for one in world.unclaimed)
    if spec.update_strategy == "Recreate":
        assert all(one.make == world.make for one in world.unclaimed)
    for _ in range(50):  # and stays there
        assert world.step(0).create == len(world.observed().unclaimed) - size == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 2**32))
def test_old_ones_are_replaced_without_a_time_of_few(size: int, lead: int, seed: int) -> None:
    spec = pool(size, update_strategy="Recreate")
    world = World(spec, seed, lead)
    for _ in range(lead + 2):
        world.step(0)
    world.make += 1
    for _ in range(size * (lead + 2)):
        world.step(0)
        assert sum(one.ready_at <= world.now for one in world.unclaimed) >= size
        assert len(world.unclaimed) <= size + max(1, size // 4)
    assert all(one.make == world.make for one in world.unclaimed)


def test_under_a_steady_load_a_pool_is_seldom_empty_and_does_not_breathe() -> None:
    """Claims come at random, at 5 a second, and a pod takes 3 seconds to start."""
    refused = taken = 0
    for seed in range(10):
        world = World(scaled(scale_down_delay=60), seed, lead=3)
        for second in range(600):
            claims = sum(world.random.random() < 0.05 for _ in range(100))
            actions = world.step(claims)
            if second > 60:
                refused += claims - world.arrivals.count(world.now)
                taken += len(actions.delete)
    assert refused <= 0.002 * 10 * 540 * 5
    assert taken <= 0.01 * 10 * 540 * 5


def test_starts_that_always_fail_are_few() -> None:
    world = World(pool(5), 1, lead=2)
    world.failing = 1.0
    for _ in range(3600):
        world.step(0)
    assert world.made <= 5 * 22
