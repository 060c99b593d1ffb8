"""The informer on a real API server, over a road on which watches are cut, stalled and refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from llmsafespace_kube.api.client import KubeClient, KubeError
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources.kinds import CONFIG_MAP
from llmsafespace_kube.resources.kubernetes import AnyObject
from tests.cluster.conftest import Cluster
from tests.cluster.faults import Faults, FaultyServer, faulty_server
from tests.cluster.support import Namespaces, eventually_async

WATCH_SECONDS = 3  # so that a silent watch is noticed while the test looks on


@pytest.fixture
def namespace(namespaces: Namespaces) -> str:
    return namespaces("informer")


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


@pytest.fixture
async def informer(roaming: KubeClient, namespace: str) -> AsyncIterator[Informer[AnyObject]]:
    """Follows the ConfigMaps of the namespace, over that road."""
    made = Informer(roaming, CONFIG_MAP, [namespace], label_selector="own", watch_seconds=WATCH_SECONDS)
    made.index("color", lambda item: [item.metadata.labels.get("color", "")])
    await made.start()
    yield made
    await made.stop()


async def paint(client: KubeClient, namespace: str, name: str, color: str) -> None:
    body = {"metadata": {"labels": {"own": "", "color": color}}}
    await client.apply(CONFIG_MAP, name, body, namespace, manager="tests")


async def until(check: Callable[[], bool]) -> None:
    """Wait for what comes true while this loop runs."""

    async def checked() -> bool:
        return check()

    await eventually_async(checked)


async def shown(informer: Informer[AnyObject], namespace: str, **colors: str) -> None:
    """Wait until the informer shows these objects in these colors, and no others."""

    def check() -> bool:
        found = {item.metadata.name: item.metadata.labels["color"] for item in informer.items()}
        assert found == colors
        for name, color in colors.items():
            assert informer.get(name, namespace) in informer.by_index("color", color)
        return True

    await until(check)


async def test_it_knows_what_is_there_and_hears_of_what_happens(
    client: KubeClient, informer: Informer[AnyObject], namespace: str
) -> None:
    await paint(client, namespace, "a", "red")
    await paint(client, namespace, "b", "red")
    await shown(informer, namespace, a="red", b="red")
    await paint(client, namespace, "a", "blue")
    await client.delete(CONFIG_MAP, "b", namespace)
    await shown(informer, namespace, a="blue")
    unlabelled = [{"op": "remove", "path": "/metadata/labels/own"}]
    await client.patch(CONFIG_MAP, "a", unlabelled, namespace)
    await shown(informer, namespace)


async def test_it_goes_on_where_a_watch_was_cut_in_the_middle_of_a_line(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    road.faults.cut = 1.0
    await paint(client, namespace, "a", "red")
    await until(lambda: road.done["cut"] >= 2)
    road.faults.cut = 0.0
    await shown(informer, namespace, a="red")
    assert road.requests["GET"] == 1  # the first list; no other was needed


async def test_a_silent_watch_is_noticed_and_replaced(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    await until(lambda: road.requests["WATCH"] > 0)
    assert road.stall_watches() == 1
    await paint(client, namespace, "a", "red")
    await shown(informer, namespace, a="red")
    assert informer.silent_for < WATCH_SECONDS


async def test_too_old_a_version_means_a_new_list_which_also_tells_what_is_gone(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    await paint(client, namespace, "a", "red")
    await paint(client, namespace, "b", "red")
    await shown(informer, namespace, a="red", b="red")
    gone: list[str] = []

    def note(old: AnyObject | None, new: AnyObject | None) -> None:
        if old is not None and new is None:
            gone.append(old.metadata.name)

    informer.on_change(note)
    road.faults.gone = 1.0
    await road.stop()
    await client.delete(CONFIG_MAP, "b", namespace)
    await road.start()
    await shown(informer, namespace, a="red")
    road.faults.gone = 0.0
    assert gone == ["b"]
    await paint(client, namespace, "a", "blue")
    await shown(informer, namespace, a="blue")


async def test_a_version_that_the_server_has_not_come_to_means_a_new_list(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    road.answer(504, only="watch=true")
    road.cut_watches()
    await until(lambda: road.requests["GET"] == 2)
    await paint(client, namespace, "a", "red")
    await shown(informer, namespace, a="red")


async def test_where_nothing_happens_a_watch_is_not_taken_for_silent(
    road: FaultyServer, roaming: KubeClient, namespace: str
) -> None:
    informer = Informer(roaming, CONFIG_MAP, [namespace], label_selector="nobody", watch_seconds=1)
    await informer.start()
    await until(lambda: road.requests["WATCH"] > 4)
    assert informer.silent_for < 3
    assert road.requests["GET"] == 1
    await informer.stop()


async def test_it_says_how_long_it_has_heard_nothing_while_the_server_is_down(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    await road.stop()
    await until(lambda: informer.silent_for > 1.0)
    await paint(client, namespace, "a", "red")
    await road.start()
    await shown(informer, namespace, a="red")
    assert informer.silent_for < WATCH_SECONDS


async def test_it_starts_when_the_server_at_last_answers(
    client: KubeClient, road: FaultyServer, roaming: KubeClient, namespace: str
) -> None:
    await paint(client, namespace, "a", "red")
    await road.stop()
    informer = Informer(roaming, CONFIG_MAP, [namespace], label_selector="own")
    starting = asyncio.create_task(informer.start())
    await asyncio.sleep(0)
    assert not starting.done()
    await road.start()
    await starting
    assert [item.metadata.name for item in informer.items()] == ["a"]
    await informer.stop()


def has(informer: Informer[AnyObject], *keys: Key) -> bool:
    return {key_of(item) for item in informer.items()}.issuperset(keys)


async def test_two_namespaces_and_the_whole_cluster(
    client: KubeClient, namespaces: Namespaces, namespace: str
) -> None:
    other = namespaces("informer-b")
    both = Informer(client, CONFIG_MAP, [namespace, other], label_selector="own")
    everything = Informer(client, CONFIG_MAP, label_selector="own")
    await both.start()
    await everything.start()
    try:
        await paint(client, namespace, "a", "red")
        await paint(client, other, "a", "blue")
        for each in (both, everything):
            await until(partial(has, each, (namespace, "a"), (other, "a")))
    finally:
        await both.stop()
        await everything.stop()


async def test_in_the_end_it_is_true_whatever_the_road_did(
    client: KubeClient, road: FaultyServer, informer: Informer[AnyObject], namespace: str
) -> None:
    road.faults = Faults(seed=7, cut=0.1, stall=0.02, gone=0.2, error=0.2, late=0.2)
    draw = random.Random(7)
    want: dict[str, str] = {}
    for number in range(150):
        name = draw.choice("abcde")
        if want.get(name) and draw.random() < 0.3:
            await client.delete(CONFIG_MAP, name, namespace)
            del want[name]
            continue
        want[name] = f"color-{number}"
        body = {"metadata": {"name": name, "labels": {"own": "", "color": want[name]}}}
        try:
            informer.observe(await client.create(CONFIG_MAP, body, namespace))
        except KubeError:
            patch = {"metadata": {"labels": body["metadata"]["labels"]}}
            informer.observe(await client.patch(CONFIG_MAP, name, patch, namespace))
        found = informer.get(name, namespace)
        assert found is not None
        assert found.metadata.labels["color"] == want[name]
    road.faults = Faults()
    await shown(informer, namespace, **want)
    assert road.done["cut"]
