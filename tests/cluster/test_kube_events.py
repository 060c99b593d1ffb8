"""Events: seen by whoever describes the object, each once, and never waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.resources.kinds import CONFIG_MAP
from tests.cluster.support import Kubectl, Namespaces, eventually_async


@pytest.fixture(scope="module")
def namespace(namespaces: Namespaces) -> str:
    return namespaces("events")


@pytest.fixture
async def events(client: KubeClient) -> AsyncIterator[Events]:
    made = Events(client, "operator")
    yield made
    await made.close()


async def test_an_event_is_shown_with_its_object_once(
    client: KubeClient, events: Events, kubectl: Kubectl, namespace: str
) -> None:
    item = await client.create(CONFIG_MAP, {"metadata": {"name": "subject"}}, namespace)
    uid = item.metadata.uid
    for _ in range(3):
        events.emit(CONFIG_MAP, item.metadata, "Warning", "NoRuntime", "there is no runtime ruby:3.3")
    events.emit(CONFIG_MAP, item.metadata, "Normal", "Found", "x" * 5000)

    async def shown() -> bool:
        found = kubectl.items("events", namespace, "--field-selector", f"involvedObject.uid={uid}")
        told = sorted((each["type"], each["reason"], each["message"][:40]) for each in found)
        assert told == [
            ("Normal", "Found", "x" * 40),
            ("Warning", "NoRuntime", "there is no runtime ruby:3.3"),
        ]
        return True

    await eventually_async(shown)


async def test_a_flood_is_dropped_and_not_waited_for(
    client: KubeClient, events: Events, namespace: str
) -> None:
    item = await client.create(CONFIG_MAP, {"metadata": {"name": "flooded"}}, namespace)
    before = dropped()
    for number in range(1000):
        events.emit(CONFIG_MAP, item.metadata, "Normal", "Flood", str(number))
    assert dropped() - before == 800


def dropped() -> float:
    return REGISTRY.get_sample_value("kube_events_dropped_total") or 0.0
