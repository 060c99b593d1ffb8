"""Leadership on a real API server: one at a time, handed over at once, and given up before others take it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmsafespace_kube.api import lease
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.lease import Leadership, LeaseSpec, may_take
from llmsafespace_kube.resources.kinds import LEASE
from tests.cluster.conftest import Cluster
from tests.cluster.faults import FaultyServer, faulty_server
from tests.cluster.support import Namespaces

LIMIT = 30.0  # seconds that anything here may take


@pytest.fixture(scope="module")
def namespace(namespaces: Namespaces) -> str:
    return namespaces("lease")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same proportions in a fifth of the time."""
    monkeypatch.setattr(lease, "DURATION", 3)
    monkeypatch.setattr(lease, "RENEW_LIMIT", 2.0)
    monkeypatch.setattr(lease, "RETRY", 0.4)


@pytest.fixture
async def road(cluster: Cluster) -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


class Candidate:
    """Runs for a Lease, and notes when it leads."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self.leads = asyncio.Event()
        self.follows = asyncio.Event()
        self.follows.set()
        self._leadership = Leadership(client, namespace, name, identity)

    async def run(self) -> None:
        await self._leadership.run(self._lead)

    async def _lead(self) -> None:
        self.follows.clear()
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leads.clear()
            self.follows.set()


@asynccontextmanager
async def running(*candidates: Candidate) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(each.run()) for each in candidates]
    try:
        async with asyncio.timeout(LIMIT):
            yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_leads_and_hands_over_when_it_stops(client: KubeClient, namespace: str) -> None:
    one = Candidate(client, namespace, "handover", "one")
    two = Candidate(client, namespace, "handover", "two")
    async with running(one) as [first]:
        await one.leads.wait()
        found = await client.get(LEASE, "handover", namespace)
        assert found.spec["holderIdentity"] == "one"
        async with running(two):
            first.cancel()
            await two.leads.wait()
            assert one.follows.is_set()
    found = await client.get(LEASE, "handover", namespace)
    assert found.spec["holderIdentity"] == ""
    assert found.spec["leaseTransitions"] == 1


async def test_of_many_exactly_one_leads(client: KubeClient, namespace: str) -> None:
    many = [Candidate(client, namespace, "many", str(number)) for number in range(5)]
    async with running(*many):
        leading = [asyncio.create_task(each.leads.wait()) for each in many]
        await asyncio.wait(leading, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(2 * lease.RETRY)
        assert sum(each.leads.is_set() for each in many) == 1
        for each in leading:
            each.cancel()


async def test_a_leader_that_is_cut_off_stops_before_another_starts(
    client: KubeClient,
    namespace: str,
    road: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(road.kubeconfig(tmp_path / "kubeconfig")))
    roaming = await KubeClient.connect(user_agent="llmsafespace-tests")
    cut_off = Candidate(roaming, namespace, "cut", "cut-off")
    other = Candidate(client, namespace, "cut", "other")
    async with running(cut_off):
        await cut_off.leads.wait()
        async with running(other):
            road.faults.late, road.faults.latency = 1.0, 3600.0  # answers never come
            await cut_off.follows.wait()
            assert not other.leads.is_set()
            await other.leads.wait()
    await roaming.close()


async def test_renewals_that_fail_now_and_then_cost_nothing(
    client: KubeClient,
    namespace: str,
    road: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(road.kubeconfig(tmp_path / "kubeconfig")))
    roaming = await KubeClient.connect(user_agent="llmsafespace-tests")
    candidate = Candidate(roaming, namespace, "failing", "one")
    async with running(candidate):
        await candidate.leads.wait()
        road.answer(409)
        road.answer(500)
        sent = road.requests["PATCH"]
        while road.requests["PATCH"] < sent + 5:
            assert candidate.leads.is_set()
            await asyncio.sleep(0.1)
    await roaming.close()


async def test_a_leader_that_stops_amid_a_renewal_releases_the_lease(
    client: KubeClient,
    namespace: str,
    road: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(road.kubeconfig(tmp_path / "kubeconfig")))
    roaming = await KubeClient.connect(user_agent="llmsafespace-tests")
    candidate = Candidate(roaming, namespace, "amid", "one")
    async with running(candidate):
        await candidate.leads.wait()
        sent = road.requests["PATCH"]
        road.faults.late, road.faults.latency = 1.0, 3600.0
        while road.requests["PATCH"] == sent:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        road.faults.late = 0.0
    assert (await client.get(LEASE, "amid", namespace)).spec["holderIdentity"] == ""
    await roaming.close()


async def test_what_the_leader_raises_is_raised_and_the_lease_released(
    client: KubeClient, namespace: str
) -> None:
    async def lead() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Leadership(client, namespace, "raises", "one").run(lead)
    assert (await client.get(LEASE, "raises", namespace)).spec["holderIdentity"] == ""


def test_a_lease_is_taken_when_it_is_free_ones_own_or_was_not_renewed() -> None:
    assert may_take(LeaseSpec(None), "one", 0)
    assert may_take(LeaseSpec(""), "one", 0)
    assert may_take(LeaseSpec("one"), "one", 0)
    assert not may_take(LeaseSpec("two", lease_duration_seconds=15), "one", 14.9)
    assert may_take(LeaseSpec("two", lease_duration_seconds=15), "one", 15)
