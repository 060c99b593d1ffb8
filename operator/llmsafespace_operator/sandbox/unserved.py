"""Tells the maker of a Sandbox or WarmPool in a namespace that nobody serves, who would wait for ever.

Operators look at the namespaces of their settings only. What lies elsewhere may be another installation's, so
only what nobody has taken up after some seconds is spoken of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.errors import NotFound
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import words
from llmsafespace_kube.resources.conditions import condition
from llmsafespace_kube.resources.kinds import SANDBOX, WARMPOOL, Kind
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import Sandbox, WarmPool

REASON = "NamespaceNotServed"
PATIENCE = 5.0  # seconds for another installation's operator


T = TypeVar("T", Sandbox, WarmPool)


class Unserved(Generic[T]):
    """Follows a kind in all namespaces but those that are served. Its controller works while this leads."""

    def __init__(
        self,
        client: KubeClient,
        events: Events,
        kind: Kind[T],
        served: Iterable[str],
    ) -> None:
        self._client = client
        self._events = events
        self._kind: Kind[T] = kind
        self._served = sorted(served)
        others = ",".join(f"metadata.namespace!={namespace}" for namespace in self._served)
        self.objects: Informer[T] = Informer(client, kind, field_selector=others)
        self.controller = Controller(f"unserved-{kind.plural}", self.reconcile, workers=1)

    def follow(self) -> None:
        """Reconcile what is new. Before the informer starts."""
        self.objects.on_change(self._changed)

    async def reconcile(self, key: Key) -> float | None:
        """One look; returns when to look again. Raises KubeError."""
        found = self.objects.get(key[1], key[0])
        if found is None or not is_untouched(found):
            return None
        meta, now = found.metadata, datetime.now(UTC)
        left = PATIENCE - (now - (meta.creation_timestamp or now)).total_seconds()
        if left > 0:
            return left
        message = words.not_served(self._kind.kind, meta.namespace, self._served)
        told = condition("Ready", False, REASON, message, now=now, generation=meta.generation)
        body = {
            "metadata": {"resourceVersion": meta.resource_version},
            "status": {"conditions": [msgspec.to_builtins(told)]},
        }
        try:
            await self._client.patch(self._kind, meta.name, body, meta.namespace, subresource="status")
        except NotFound:
            return None
        self._events.emit(self._kind, meta, "Warning", REASON, message)
        return None

    def _changed(self, old: T | None, new: T | None) -> None:
        if new is not None and is_untouched(new):
            self.controller.enqueue(key_of(new))


def is_untouched(found: Sandbox | WarmPool) -> bool:
    """Whether no operator has had it in hand."""
    return not found.status.conditions and not found.metadata.finalizers


def watchers(
    client: KubeClient, events: Events, settings: Settings
) -> list[Unserved[Sandbox] | Unserved[WarmPool]]:
    """One for each kind that people make; none when the settings do not want them."""
    if not settings.watch_unserved:
        return []
    return [
        Unserved(client, events, SANDBOX, settings.sandbox_namespaces),
        Unserved(client, events, WARMPOOL, settings.pool_namespaces),
    ]


async def follow_all(some: Iterable[Unserved[Sandbox] | Unserved[WarmPool]]) -> None:
    """Start their informers, however long that takes: nothing else waits for them."""
    await asyncio.gather(*(each.objects.start() for each in some))
