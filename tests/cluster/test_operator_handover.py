"""A pool keeps its maximum when its operator knows less than there is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import key_of
from llmsafespace_kube.resources.kinds import WARMPOD, WARMPOOL
from llmsafespace_operator.warmpool.members import Members
from llmsafespace_operator.warmpool.records import Record
from tests.cluster.faults import Faults, faulty_server
from tests.cluster.support import Kubectl, Namespaces, eventually, eventually_async
from tests.cluster.support_processes import Installation, Operator
from tests.cluster.support_sandboxes import WARMPOD as WARMPODS
from tests.cluster.support_sandboxes import manifest

SIZE = 2
RUNTIME = {"image": "localhost/handover:1", "language": "handover", "version": "1"}
LOSES_THE_FIRST = 1  # of two calls, each with even chances: the seed with which only the first is lost


@pytest.fixture
def installation(install: Callable[..., Installation], kubectl: Kubectl) -> Iterator[Installation]:
    """Of WarmPods whose pods never run."""
    made = install(pod_node_selector={"test": "nowhere"})
    kubectl.apply(manifest("RuntimeEnvironment", made.pools, RUNTIME))
    yield made
    kubectl("delete", "runtimeenvironments.llmsafespace.dev", made.pools)


async def test_who_takes_over_counts_what_is_there_and_not_what_its_watch_has_told(
    installation: Installation, kubectl: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = installation.operator()
    eventually(lambda: leader.leads)
    async with faulty_server(Faults(only="/warmpods", stall=1.0)) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        follower = await asyncio.to_thread(installation.operator)
        spec = {"runtime": installation.pools, "minSize": SIZE, "maxSize": SIZE}
        kubectl.apply(manifest("WarmPool", "few", spec), namespace=installation.pools)
        await asyncio.to_thread(eventually, lambda: len(kubectl.items(WARMPODS, installation.pools)) == SIZE)
        leader.stop()
        await eventually_async(lambda: asyncio.to_thread(has_looked, follower))
        assert len(kubectl.items(WARMPODS, installation.pools)) == SIZE


async def test_a_creation_whose_answer_is_lost_counts_although_the_watch_is_silent(
    namespaces: Namespaces,
    crds: None,
    client: KubeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    namespace = namespaces("pools")
    body = {"metadata": {"name": "few"}, "spec": {"runtime": "handover", "minSize": 0}}
    pool = await client.create(WARMPOOL, body, namespace)
    async with faulty_server(Faults(seed=LOSES_THE_FIRST, only="POST .*/warmpods")) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        faulty = await KubeClient.connect(user_agent="llmsafespace-tests")
        warm_pods = Informer(faulty, WARMPOD, [namespace])
        members = Members(faulty, warm_pods)
        await warm_pods.start()
        try:
            server.stall_watches()
            server.faults.lost = 0.5
            await members.create(pool, 1, Record())
            assert server.done["lost"] == 1
            assert members.settled(key_of(pool))
            (there,), _ = await client.list(WARMPOD, namespace)
            assert [each.metadata.uid for each in warm_pods.items()] == [there.metadata.uid]
        finally:
            await warm_pods.stop()
            await faulty.close()


def has_looked(operator: Operator) -> bool:
    """At its pools, as their leader."""
    done = r'workqueue_work_duration_seconds_count\{name="warmpool"\} ([\d.]+)'
    found = re.search(done, operator.get("/metrics") or "")
    return operator.leads and found is not None and float(found[1]) >= 1
