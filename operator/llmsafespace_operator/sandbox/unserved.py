"""Reports Sandboxes and WarmPools in namespaces that no operator serves: they would wait forever.

An operator reconciles only the namespaces of its settings. An object elsewhere may belong to another
installation's operator. It is therefore reported only if no operator has touched it after some seconds.
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
PATIENCE = 5.0  # seconds to wait for another installation's operator


T = TypeVar("T", Sandbox, WarmPool)


class Unserved(Generic[T]):
    """Watches a kind in all namespaces that are not served. Its controller runs in the leader."""

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
        """Register for changes. Call it before the informer starts."""
        self.objects.on_change(self._changed)

    async def reconcile(self, key: Key) -> float | None:
        """Report one object if it is untouched; return the seconds until the next check. Raises KubeError."""
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
    """Whether no operator has worked on the object: it has neither conditions nor finalizers."""
    return not found.status.conditions and not found.metadata.finalizers


def watchers(
    client: KubeClient, events: Events, settings: Settings
) -> list[Unserved[Sandbox] | Unserved[WarmPool]]:
    """Make a watcher for Sandboxes and one for WarmPools; none if the settings disable them."""
    if not settings.watch_unserved:
        return []
    return [
        Unserved(client, events, SANDBOX, settings.sandbox_namespaces),
        Unserved(client, events, WARMPOOL, settings.pool_namespaces),
    ]


async def follow_all(some: Iterable[Unserved[Sandbox] | Unserved[WarmPool]]) -> None:
    """Start the watchers' informers. Nothing else waits for them."""
    await asyncio.gather(*(each.objects.start() for each in some))
