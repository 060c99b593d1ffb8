"""A client of the API server: one method for each verb. Bodies are decoded directly into the kind's type."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from llmsafespace_kube.api import wire
from llmsafespace_kube.api.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from llmsafespace_kube.api.server import Server
from llmsafespace_kube.api.transport import Transport
from llmsafespace_kube.api.wire import Snapshot, WatchEvent
from llmsafespace_kube.resources.kinds import Kind, T

__all__ = [
    "AlreadyExists",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "KubeClient",
    "KubeError",
    "NotFound",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
]

Patch = list[Any] | dict[str, Any]  # a JSON-Patch, or a merge patch

_LIST_LIMIT = 60.0  # seconds
_GRACE = 5.0  # seconds of silence allowed after the time at which the API server should have ended a watch

_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"

_SEGMENT = re.compile(r"(?!\.\.?$)[A-Za-z0-9._:-]+")  # no "/" and no "..": they would change the URL's target


class KubeClient:
    """Calls the API server. Each call ends within 15 seconds (a list within 60), and raises KubeError.

    Reads and deletes are repeated while the API server is unavailable for a short time. Creates and patches
    are not repeated: they raise Unavailable and may have happened. Read the object again before you decide.
    """

    def __init__(self, server: Server, *, user_agent: str) -> None:
        self._transport = Transport(server, user_agent=user_agent)

    @classmethod
    async def connect(cls, *, user_agent: str) -> KubeClient:
        """Connect to the API server that KUBECONFIG names, or else to the one of the cluster of this pod.

        Raises KubeError if neither can be used; the message says why.
        """
        return cls(await Server.find(), user_agent=user_agent)

    async def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    async def get(self, kind: Kind[T], name: str, namespace: str | None = None) -> T:
        """Read the object; raises NotFound."""
        return wire.decode(kind, await self._transport.call("GET", _path(kind, namespace, name)))

    async def list(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> tuple[list[T], str]:
        """Return the objects and the list's resource version. Without `namespace`, of all namespaces.

        Objects that cannot be decoded are logged and left out; see `snapshot`.
        """
        found = await self.snapshot(
            kind,
            namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            resource_version=resource_version,
        )
        return found.items, found.version

    async def snapshot(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        resource_version: str = "",
    ) -> Snapshot[T]:
        """List the objects. The snapshot also names the objects that cannot be decoded."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "resourceVersion": resource_version,
        }
        path = _path(kind, namespace)
        return wire.decode_list(kind, await self._transport.call("GET", path, query=query, limit=_LIST_LIMIT))

    async def create(
        self, kind: Kind[T], body: msgspec.Struct | dict[str, Any], namespace: str | None = None
    ) -> T:
        """Create the object; raises AlreadyExists."""
        sent = wire.encode_object(kind, body)
        return wire.decode(kind, await self._transport.call("POST", _path(kind, namespace), body=sent))

    async def patch(
        self, kind: Kind[T], name: str, patch: Patch, namespace: str | None = None, *, subresource: str = ""
    ) -> T:
        """Change the object. `patch` is a JSON-Patch (a list) or a merge patch (a dict).

        Raises Invalid if a `test` of the JSON-Patch fails.
        """
        answer = await self._transport.call(
            "PATCH",
            _path(kind, namespace, name, subresource),
            body=msgspec.json.encode(patch),
            content_type=_JSON_PATCH if isinstance(patch, list) else _MERGE_PATCH,
        )
        return wire.decode(kind, answer)

    async def apply(
        self, kind: Kind[T], name: str, body: dict[str, Any], namespace: str | None = None, *, manager: str
    ) -> T:
        """Server-side apply: create or change the object so that it has these fields.

        Takes fields over from other managers, and removes fields that `manager` applied before and that are
        not in `body`.
        """
        answer = await self._transport.call(
            "PATCH",
            _path(kind, namespace, name),
            query={"fieldManager": manager, "force": "true"},
            body=wire.encode_object(kind, {**body, "metadata": {**body.get("metadata", {}), "name": name}}),
            content_type=_APPLY,
        )
        return wire.decode(kind, answer)

    async def delete(
        self,
        kind: Kind[T],
        name: str,
        namespace: str | None = None,
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "Background",
    ) -> bool:
        """Delete the object; return False if it does not exist.

        Raises Conflict if its uid or resource version differs from the given one.
        """
        sent = wire.encode_delete(uid, resource_version, propagation)
        try:
            await self._transport.call("DELETE", _path(kind, namespace, name), body=sent)
        except NotFound:
            return False
        return True

    async def watch(
        self,
        kind: Kind[T],
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        seconds: int = 30,
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Yield the events after `resource_version`, for at most `seconds`.

        Raises Gone if that version is too old, and Unavailable if the connection is lost. The API server ends
        each watch after `seconds`, so a connection that is silent for longer counts as lost.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "timeoutSeconds": str(seconds),
        }
        path = _path(kind, namespace)
        rest = b""
        async with aclosing(self._transport.stream(path, query, seconds + _GRACE)) as chunks:
            async for chunk in chunks:
                lines, rest = wire.lines_of(rest, chunk)
                for line in lines:
                    yield wire.decode_line(kind, line, f"WATCH {path}")


def _path(kind: Kind[T], namespace: str | None, name: str | None = None, subresource: str = "") -> str:
    for segment in (namespace, name):
        if segment is not None and not _SEGMENT.fullmatch(segment):
            raise Invalid(f"{segment!r} is not a valid object name", status=422, reason="Invalid")
    return kind.path(namespace, name, subresource)
