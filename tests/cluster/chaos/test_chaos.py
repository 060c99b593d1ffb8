"""Death at any moment and bad roads: no pod is handed out twice, no sandbox is stuck, nothing is left.

CHAOS_SEED repeats a run as far as chance goes; every run prints its seed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Literal

import pytest
import pytest_asyncio

from llmsafespace_kube.api.client import KubeClient
from tests.cluster.chaos.arena import Arena, Role
from tests.cluster.chaos.clients import Clients
from tests.cluster.chaos.outage import Outage
from tests.cluster.faults import Faults
from tests.cluster.support_processes import Installation

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINIMUM, MAXIMUM = 6, 12
LIMIT = 120.0  # seconds until nothing is left, graces and watches that have to be found silent included

Moment = Literal["asked", "meanwhile", "done"]
QUICK: list[tuple[Role, Moment, str]] = [
    ("gateway", "done", r"^PATCH .*/warmpods/[^/ ]+ "),
    ("gateway", "meanwhile", r"^POST .*/sandboxes .*warmPod\""),
    ("gateway", "done", r"^POST .*/sandboxes .*warmPod\""),
    ("gateway", "done", r"^POST .*/sandboxes .*cold-reason"),
    ("operator", "done", r"^POST .*pools-\w+/secrets "),
    ("operator", "done", r"^PATCH .*/warmpods/[^/ ]+/status .*Ready"),
    ("operator", "asked", r"^PATCH .*/sandboxes/[^/ ]+/status .*Running"),
    ("operator", "done", r"^DELETE .*/warmpods/"),
]
FURTHER: list[tuple[Role, Moment, str]] = [
    ("gateway", "asked", r"^PATCH .*/warmpods/[^/ ]+ "),
    ("gateway", "asked", r"^POST .*/sandboxes "),
    ("gateway", "asked", r"^DELETE .*/sandboxes/"),
    ("gateway", "done", r"^DELETE .*/sandboxes/"),
    ("operator", "asked", r"^POST .*/warmpods "),
    ("operator", "done", r"^POST .*/warmpods "),
    ("operator", "done", r"^POST .*pools-\w+/pods "),
    ("operator", "asked", r"^PATCH .*/warmpods/[^/ ]+/status .*Assigned"),
    ("operator", "done", r"^PATCH .*/warmpods/[^/ ]+/status .*Assigned"),
    ("operator", "done", r"^PATCH .*/pods/[^/ ]+ .*activeDeadlineSeconds"),
    ("operator", "done", r"^PATCH .*/sandboxes/[^/ ]+/status .*Running"),
    ("operator", "done", r"^POST .*sandboxes-\w+/secrets "),
    ("operator", "done", r"^POST .*sandboxes-\w+/pods "),
    ("operator", "asked", r"^DELETE .*/warmpods/"),
    ("operator", "asked", r"^PATCH .*/sandboxes/[^/ ]+ .*finalizers"),
    ("operator", "done", r"^PATCH .*/sandboxes/[^/ ]+ .*finalizers"),
]
STEPS = [*QUICK, *(pytest.param(*step, marks=pytest.mark.heavy) for step in FURTHER)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(installation: Installation, road_client: KubeClient) -> AsyncIterator[Arena]:
    made = Arena(installation, road_client, MINIMUM, MAXIMUM)
    async with made.open():
        assert await made.settled(LIMIT) == ""
        yield made


@pytest.fixture
def draw() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED", secrets.randbelow(2**32)))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.mark.parametrize(("role", "moment", "call"), STEPS)
async def test_death_at_a_step_costs_nobody_a_sandbox(
    arena: Arena, draw: random.Random, role: Role, moment: Moment, call: str
) -> None:
    clients = arena.clients(draw)
    ambush = arena.ambush(role, call, moment)
    await asyncio.gather(clients.crowd(4, at_once=2), clients.life(useWarmPool=False))
    assert ambush.sprung.is_set()
    await all_is_well(arena, clients)


@pytest.mark.timeout(400)
async def test_deaths_and_bad_roads(arena: Arena, draw: random.Random) -> None:
    await under_load(arena, draw, sandboxes=150, at_once=12, every=25)


@pytest.mark.heavy
@pytest.mark.timeout(4 * 3600)
async def test_deaths_and_bad_roads_for_ten_thousand_sandboxes(arena: Arena, draw: random.Random) -> None:
    await under_load(arena, draw, sandboxes=10_000, at_once=64, every=100)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
async def test_etcd_stops_and_the_api_server_dies(arena: Arena, draw: random.Random) -> None:
    outage = Outage.of_own_cluster()
    clients = arena.clients(draw)
    load = asyncio.create_task(clients.crowd(600, at_once=12))
    try:
        await served(clients, 100)
        await outage.stop_etcd(20.0)
        await served(clients, 300)
        await outage.kill_api_server()
        await load
    finally:
        load.cancel()
    await all_is_well(arena, clients)


async def under_load(arena: Arena, draw: random.Random, sandboxes: int, at_once: int, every: int) -> None:
    """So many sandboxes over bad roads, `at_once` at a time, and a death in every so many of them."""
    clients = arena.clients(draw)
    arena.worsen(bad(draw))
    deaths = asyncio.create_task(strikes(arena, clients, draw, every))
    try:
        await clients.crowd(sandboxes, at_once)
    finally:
        deaths.cancel()
        arena.worsen(Faults)
    await all_is_well(arena, clients)
    assert len(clients.seen.served) == sandboxes


async def strikes(arena: Arena, clients: Clients, draw: random.Random, every: int) -> None:
    for begun in itertools.count(0, every):
        await served(clients, begun + draw.randrange(every))
        await arena.strike(draw)


async def served(clients: Clients, count: int) -> None:
    """Wait until so many have a sandbox."""
    while len(clients.seen.served) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def all_is_well(arena: Arena, clients: Clients) -> None:
    left, wrong = await arena.settled(LIMIT), arena.wrong(clients)
    print(arena.report(clients), *wrong, sep="\n")
    assert (left, wrong) == ("", [])


def bad(draw: random.Random) -> Callable[[], Faults]:
    """Roads that lose one call in twelve, and on which a watch breaks or falls silent now and then."""

    def road() -> Faults:
        return Faults(
            seed=draw.getrandbits(32),
            conflict=0.03,
            error=0.03,
            lost=0.02,
            gone=0.05,
            late=0.1,
            latency=0.3,
            cut=0.005,
            stall=0.001,
        )

    return road
