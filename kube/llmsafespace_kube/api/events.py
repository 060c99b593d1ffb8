"""Kubernetes Events, for people who run `kubectl describe`.

`emit` only puts an event into a queue; one task writes them. A slow API server therefore never delays a
reconcile: events that do not fit into the queue are dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections import OrderedDict
from typing import Any

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.client import KubeClient, KubeError
from llmsafespace_kube.api.objects import micro_time
from llmsafespace_kube.resources import kinds
from llmsafespace_kube.resources.kinds import Kind
from llmsafespace_kube.resources.kubernetes import Metadata

_log = logging.getLogger(__name__)

_MAX_WAITING = 200  # events in the queue; further ones are dropped
_MAX_REMEMBERED = 4096
_REPEAT_INTERVAL = 300.0  # seconds in which the same event of an object is written once
_NOTE_LENGTH = 1024  # the API server's limit

_EventKey = tuple[str, str, str]  # uid of the object, reason, message


class Events:
    """Writes events one after another. `component` names the writer. Call `close` at the end."""

    def __init__(self, client: KubeClient, component: str) -> None:
        self._client = client
        self._component = component
        self._instance = f"{component}-{socket.gethostname()}"[:128]
        self._waiting: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(_MAX_WAITING)
        self._written: OrderedDict[_EventKey, float] = OrderedDict()
        self._writer: asyncio.Task[None] | None = None

    def emit(self, kind: Kind[Any], metadata: Metadata, type: str, reason: str, message: str) -> None:
        """Record an event of an object; `type` is Normal or Warning, `reason` one CamelCase word.

        Never blocks. The same event within five minutes is not written again, and events are dropped while
        the queue is full.
        """
        if self._is_repeated((metadata.uid, reason, message)):
            return
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        try:
            self._waiting.put_nowait(self._event(kind, metadata, type, reason, message))
        except asyncio.QueueFull:
            metrics.EVENTS_DROPPED.inc()

    async def close(self) -> None:
        """Stop writing. Events that still wait are lost."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer

    def _is_repeated(self, event: _EventKey) -> bool:
        now = time.monotonic()
        if now - self._written.get(event, -_REPEAT_INTERVAL) < _REPEAT_INTERVAL:
            return True
        self._written[event] = now
        self._written.move_to_end(event)
        if len(self._written) > _MAX_REMEMBERED:
            self._written.popitem(last=False)
        return False

    def _event(
        self, kind: Kind[Any], metadata: Metadata, type: str, reason: str, message: str
    ) -> tuple[str, dict[str, Any]]:
        namespace = metadata.namespace or "default"
        return namespace, {
            "metadata": {"name": f"{metadata.name[:230]}.{secrets.token_hex(8)}", "namespace": namespace},
            "eventTime": micro_time(),
            "reportingController": f"llmsafespace.dev/{self._component}",
            "reportingInstance": self._instance,
            "type": type,
            "reason": reason,
            "action": reason,
            "note": message[:_NOTE_LENGTH],
            "regarding": {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "name": metadata.name,
                "namespace": metadata.namespace,
                "uid": metadata.uid,
                "resourceVersion": metadata.resource_version,
            },
        }

    async def _write(self) -> None:
        while True:
            namespace, event = await self._waiting.get()
            try:
                await self._client.create(kinds.EVENT, event, namespace)
            except KubeError as error:
                _log.info("an event was not written: %s", error)
