"""Events, for people who run `kubectl describe`: written off the hot path, and never at its cost."""

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

_WAITING = 200  # events that may wait to be written; those beyond are dropped
_REMEMBERED = 4096
_SAME_FOR = 300.0  # seconds in which the same event of an object is written once
_NOTE_LENGTH = 1024  # the API server takes no longer ones

_Sameness = tuple[str, str, str]


class Events:
    """Writes events one after another. Call `close` at the end."""

    def __init__(self, client: KubeClient, component: str) -> None:
        self._client = client
        self._component = component
        self._instance = f"{component}-{socket.gethostname()}"[:128]
        self._waiting: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(_WAITING)
        self._written: OrderedDict[_Sameness, float] = OrderedDict()
        self._writer: asyncio.Task[None] | None = None

    def emit(self, kind: Kind[Any], metadata: Metadata, type: str, reason: str, message: str) -> None:
        """Say that something happened to an object; `type` is Normal or Warning, `reason` one CamelCase word.

        Never blocks. The same again within five minutes is left out, as is what comes faster than the API
        server takes it.
        """
        if self._is_known((metadata.uid, reason, message)):
            return
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        try:
            self._waiting.put_nowait(self._event(kind, metadata, type, reason, message))
        except asyncio.QueueFull:
            metrics.EVENTS_DROPPED.inc()

    async def close(self) -> None:
        """Write no more."""
        if self._writer is not None:
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer

    def _is_known(self, event: _Sameness) -> bool:
        now = time.monotonic()
        if now - self._written.get(event, -_SAME_FOR) < _SAME_FOR:
            return True
        self._written[event] = now
        self._written.move_to_end(event)
        if len(self._written) > _REMEMBERED:
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
