"""Creates and deletes the WarmPods of pools, and tracks the writes that the cache does not show yet."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import AlreadyExists, Conflict, KubeError, Unavailable, Unreachable
from llmsafespace_kube.api.expectations import Expectations
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.objects import Key, key_of
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import WARMPOD
from llmsafespace_kube.resources.types import NamedObject, WarmPod, WarmPool
from llmsafespace_operator.warmpool.caches import pool_of
from llmsafespace_operator.warmpool.records import Record


class Members:
    """Writes WarmPods, for one pool at a time. `settled` is False while the cache is behind those writes."""

    def __init__(self, client: KubeClient, warm_pods: Informer[WarmPod]) -> None:
        self._client = client
        self._warm_pods = warm_pods
        self._expectations = Expectations()
        warm_pods.on_change(self._changed)

    def settled(self, pool: Key) -> bool:
        """Whether the cache shows all writes for the pool, so that its WarmPods can be counted."""
        return self._expectations.satisfied(pool)

    def forget(self, pool: Key) -> None:
        """The pool has been deleted."""
        self._expectations.forget(pool)

    async def create(self, pool: WarmPool, count: int, record: Record) -> None:
        """Create `count` WarmPods concurrently. A refusal counts as a failed start. Raises Unavailable."""
        results = await asyncio.gather(
            *(self._create(pool, record) for _ in range(count)), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        refused = [one for one in failures if isinstance(one, KubeError) and not isinstance(one, Unavailable)]
        for error in refused:
            record.failed(error.message)
        for failure in failures:
            if failure not in refused:
                raise failure

    async def delete(self, pool: Key, doomed: Iterable[str]) -> bool:
        """Delete the WarmPods of these names if they are unchanged; return False if one has changed.

        It may have been claimed. Raises KubeError.
        """
        found = [self._warm_pods.get(name, pool[0]) for name in doomed]
        results = await asyncio.gather(
            *(self._delete(pool, one) for one in found if one is not None), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Conflict):
                raise result
        return not any(isinstance(result, Conflict) for result in results)

    async def _create(self, pool: WarmPool, record: Record) -> None:
        meta, key = pool.metadata, key_of(pool)
        name = f"{meta.name}-{secrets.token_hex(4)}"
        body: dict[str, Any] = {
            "metadata": {
                "name": name,
                "labels": {**names.WARMPOD_LABELS, "pool": meta.name, names.POOL: meta.name},
            },
            "spec": {
                "poolRef": NamedObject(meta.name, meta.namespace),
                "creationTimestamp": datetime.now(UTC),
            },
        }
        self._expectations.expect_created(key, [name])
        record.created(name)
        try:
            made = await self._made(name, meta.namespace, body)
        except KubeError as error:
            if not isinstance(error, Unavailable) or isinstance(error, Unreachable):
                self._expectations.observed_created(key, name)
                record.gone(name)
            raise  # after another Unavailable it may exist: wait until the informer shows it
        self._warm_pods.observe(made)

    async def _made(self, name: str, namespace: str, body: dict[str, Any]) -> WarmPod:
        """Create a WarmPod; if the result is unknown, try again: the name makes it idempotent.

        Raises Unreachable if it was certainly not created, Unavailable if that is unknown.
        """
        try:
            return await self._client.create(WARMPOD, body, namespace)
        except Unreachable:
            raise
        except Unavailable as error:
            doubt = error
        try:
            return await self._client.create(WARMPOD, body, namespace)
        except AlreadyExists:
            return await self._client.get(WARMPOD, name, namespace)
        except Unreachable:
            raise doubt from None

    async def _delete(self, pool: Key, warm_pod: WarmPod) -> None:
        """Delete a WarmPod in the state in which it was unclaimed; the API server compares the version."""
        meta = warm_pod.metadata
        self._expectations.expect_deleted(pool, [meta.name])
        try:
            await self._client.delete(
                WARMPOD, meta.name, meta.namespace, uid=meta.uid, resource_version=meta.resource_version
            )
        except KubeError:
            self._expectations.observed_deleted(pool, meta.name)
            raise

    def _changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        if new is None and old is not None:
            self._expectations.observed_deleted(pool_of(old), old.metadata.name)
        elif new is not None:
            self._expectations.observed_created(pool_of(new), new.metadata.name)
