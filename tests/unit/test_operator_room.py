"""Which warm pods give way to a sandbox that no node takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_operator.pods.room import Spare, Waiting, giving_way
from llmsafespace_operator.resources.kubernetes import Metadata
from llmsafespace_operator.resources.quantities import number
from llmsafespace_operator.resources.types import (
    NamedObject,
    PoolResources,
    Resources,
    WarmPod,
    WarmPodSpec,
)
from llmsafespace_operator.sandbox.turns import Turns


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
    assert not waiting
    assert turns.take(("n", "y"))


def test_pools_wait_until_nobody_does() -> None:
    waiting, over = Waiting(), []
    waiting.on_over = lambda: over.append(True)
    waiting.add(("n", "x"))
    waiting.add(("n", "y"))
    assert waiting.take_turn(("n", "x"))
    assert not waiting.take_turn(("n", "x"))  # those that were deleted may still be going
    waiting.discard(("n", "x"))
    waiting.discard(("n", "never"))
    assert waiting
    assert not over
    waiting.discard(("n", "y"))
    assert not waiting
    assert over == [True]
