"""The client of the API server: every verb, every refusal as what it is, and what a bad connection does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from llmsafespace_kube.api import transport
from llmsafespace_kube.api.client import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeClient,
    KubeError,
    NotFound,
    TooManyRequests,
    Unavailable,
    Unreachable,
)
from llmsafespace_kube.resources.kinds import CONFIG_MAP, WARMPOD
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.types import NamedObject, WarmPod, WarmPodSpec
from tests.cluster.conftest import Cluster
from tests.cluster.faults import FaultyServer, faulty_server
from tests.cluster.support import Kubectl, Namespaces

T = TypeVar("T")


@pytest.fixture(scope="module")
def namespace(namespaces: Namespaces) -> str:
    return namespaces("client")


@pytest.fixture
async def road(cluster: Cluster) -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest.fixture
async def roaming(
    road: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeClient]:
    """A client whose calls all take that road."""
    monkeypatch.setenv("KUBECONFIG", str(road.kubeconfig(tmp_path / "kubeconfig")))
    client = await KubeClient.connect(user_agent="llmsafespace-tests")
    yield client
    await client.close()


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"made-by": name}}, "data": data}


async def test_the_life_of_an_object(client: KubeClient, namespace: str) -> None:
    made = await client.create(CONFIG_MAP, config_map("life", color="red"), namespace)
    assert made.metadata.uid
    found = await client.get(CONFIG_MAP, "life", namespace)
    assert found == made
    listed, version = await client.list(CONFIG_MAP, namespace, label_selector="made-by=life")
    assert listed == [made]
    assert int(version) >= int(made.metadata.resource_version)
    patched = await client.patch(CONFIG_MAP, "life", {"metadata": {"labels": {"a": "1"}}}, namespace)
    assert patched.metadata.labels == {"made-by": "life", "a": "1"}
    test = [
        {"op": "test", "path": "/metadata/labels/a", "value": "1"},
        {"op": "replace", "path": "/metadata/labels/a", "value": "2"},
    ]
    assert (await client.patch(CONFIG_MAP, "life", test, namespace)).metadata.labels["a"] == "2"
    with pytest.raises(Invalid, match="one of its tests failed"):
        await client.patch(CONFIG_MAP, "life", test, namespace)
    assert await client.delete(CONFIG_MAP, "life", namespace)
    assert not await client.delete(CONFIG_MAP, "life", namespace)


async def test_apply_makes_and_changes_and_takes_over(client: KubeClient, namespace: str) -> None:
    first = await client.apply(CONFIG_MAP, "applied", config_map("x", a="1"), namespace, manager="one")
    body = {"metadata": {"labels": {"made-by": "two"}}}
    second = await client.apply(CONFIG_MAP, "applied", body, namespace, manager="two")
    assert second.metadata.uid == first.metadata.uid
    assert second.metadata.labels == {"made-by": "two"}


async def test_a_struct_is_created_as_it_is(client: KubeClient, crds: None, namespace: str) -> None:
    body = WarmPod(Metadata(name="typed"), WarmPodSpec(NamedObject("pool", namespace)))
    made = await client.create(WARMPOD, body, namespace)
    assert made.spec == body.spec
    status = await client.patch(
        WARMPOD, "typed", {"status": {"phase": "Ready"}}, namespace, subresource="status"
    )
    assert status.status.phase == "Ready"


async def test_refusals_are_told_apart_and_say_why(client: KubeClient, namespace: str) -> None:
    made = await client.create(CONFIG_MAP, config_map("taken"), namespace)
    with pytest.raises(
        AlreadyExists, match=f'POST .*/{namespace}/configmaps: configmaps "taken" already exists'
    ):
        await client.create(CONFIG_MAP, config_map("taken"), namespace)
    with pytest.raises(NotFound, match='configmaps "nobody" not found'):
        await client.get(CONFIG_MAP, "nobody", namespace)
    with pytest.raises(Invalid, match=r"metadata\.name: Invalid value"):
        await client.create(CONFIG_MAP, config_map("Upper"), namespace)
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAP, "taken", namespace, uid="another")
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAP, "taken", namespace, resource_version="1")
    stale = {"metadata": {"resourceVersion": "1", "labels": {"a": "1"}}}
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAP, "taken", stale, namespace)
    assert await client.delete(
        CONFIG_MAP,
        "taken",
        namespace,
        uid=made.metadata.uid,
        resource_version=made.metadata.resource_version,
    )


@pytest.mark.parametrize("name", ["../secrets", "a/status", "..", "a?x=1", "a%2Fb", "", "a#b", "a\r\nb"])
async def test_a_name_never_leads_elsewhere(client: KubeClient, namespace: str, name: str) -> None:
    with pytest.raises(Invalid, match="is not a valid object name"):
        await client.delete(CONFIG_MAP, name, namespace)


async def test_what_to_do_is_said_where_no_server_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(KubeError, match="KUBECONFIG is not set"):
        await KubeClient.connect(user_agent="llmsafespace-tests")
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    with pytest.raises(KubeError, match="KUBECONFIG /nowhere/kubeconfig"):
        await KubeClient.connect(user_agent="llmsafespace-tests")


async def test_credentials_that_ran_out_are_renewed(
    cluster: Cluster, kubectl: Kubectl, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("out-of-date")
    version = {"apiVersion": "client.authentication.k8s.io/v1"}
    answer = json.dumps({**version, "kind": "ExecCredential", "status": {"token": "%s"}})
    program = {"command": "sh", "args": ["-c", f"printf '{answer}' $(cat {token})"]}
    kubeconfig = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    kubeconfig["users"][0]["user"] = {"exec": {**version, "interactiveMode": "Never", **program}}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(path))
    client = await KubeClient.connect(user_agent="llmsafespace-tests")
    token.write_text(kubectl("create", "token", "default", "--namespace", namespace).strip())
    with pytest.raises(Forbidden, match=f"system:serviceaccount:{namespace}:default"):
        await client.get(CONFIG_MAP, "any", namespace)
    await client.close()


async def test_reads_and_deletes_outlast_a_hiccup(
    road: FaultyServer, roaming: KubeClient, namespace: str
) -> None:
    await roaming.create(CONFIG_MAP, config_map("hiccup"), namespace)
    for status in (500, 503, 429):
        road.answer(status, times=2)
        assert (await roaming.get(CONFIG_MAP, "hiccup", namespace)).metadata.name == "hiccup"
    road.faults.lost = 1.0
    asyncio.get_running_loop().call_later(0.2, setattr, road.faults, "lost", 0.0)
    assert (await roaming.list(CONFIG_MAP, namespace))[0]
    road.answer(500)
    assert await roaming.delete(CONFIG_MAP, "hiccup", namespace)


async def test_writes_are_sent_once(road: FaultyServer, roaming: KubeClient, namespace: str) -> None:
    road.answer(500)
    with pytest.raises(Unavailable, match="a fault made for a test"):
        await roaming.create(CONFIG_MAP, config_map("once"), namespace)
    road.answer(429)
    with pytest.raises(TooManyRequests):
        await roaming.patch(CONFIG_MAP, "once", {}, namespace)
    assert road.requests == {"POST": 1, "PATCH": 1}
    road.faults.lost = 1.0
    with pytest.raises(Unavailable, match="connection to the API server was lost"):
        await roaming.create(CONFIG_MAP, config_map("once"), namespace)
    road.faults.lost = 0.0
    with pytest.raises(AlreadyExists):
        await roaming.create(CONFIG_MAP, config_map("once"), namespace)


async def test_a_server_that_is_briefly_down_is_waited_for_even_by_writes(
    road: FaultyServer, roaming: KubeClient, namespace: str
) -> None:
    await road.stop()
    call = asyncio.create_task(roaming.create(CONFIG_MAP, config_map("waited"), namespace))
    await asyncio.sleep(0)
    await road.start()
    assert (await call).metadata.name == "waited"
    await road.stop()
    with pytest.raises(Unreachable, match=f"cannot reach the API server at {road.url}"):
        await roaming.get(CONFIG_MAP, "waited", namespace)


async def test_no_call_lasts_longer_than_its_limit(
    road: FaultyServer, roaming: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = transport.Transport.call.__kwdefaults__
    assert calls is not None
    monkeypatch.setitem(calls, "limit", 0.3)
    road.faults.late, road.faults.latency = 1.0, 3600.0
    with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
        await roaming.get(CONFIG_MAP, "any", namespace)


async def test_watches_leave_calls_their_way(client: KubeClient, namespace: str) -> None:
    _, version = await client.list(CONFIG_MAP, namespace)
    watches = [client.watch(CONFIG_MAP, namespace, resource_version=version) for _ in range(100)]
    firsts = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await client.create(CONFIG_MAP, config_map("seen"), namespace)
    events = await asyncio.gather(*firsts)
    assert {(event.type, event.key) for event in events} == {("ADDED", (namespace, "seen"))}
    for watch in watches:
        await watch.aclose()


async def test_a_watch_ends_in_time_and_tells_nothing_of_what_it_does_not_select(
    client: KubeClient, namespace: str
) -> None:
    _, version = await client.list(CONFIG_MAP, namespace)
    watch = client.watch(
        CONFIG_MAP, namespace, resource_version=version, label_selector="made-by=nobody", seconds=2
    )
    reading = asyncio.ensure_future(_all(watch))
    await client.create(CONFIG_MAP, config_map("unwatched"), namespace)
    assert {event.type for event in await reading} <= {"BOOKMARK"}


async def _all(watch: AsyncIterator[T]) -> list[T]:
    return [event async for event in watch]


async def test_a_watch_from_too_long_ago_is_gone(client: KubeClient, namespace: str) -> None:
    with pytest.raises(Gone):
        async for _ in client.watch(CONFIG_MAP, namespace, resource_version="1"):
            pass
