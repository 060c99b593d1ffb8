"""The API server's client: one method for each verb, bodies decoded straight into the kind's type."""

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
_GRACE = 5.0  # seconds that a watch may be silent beyond its end

_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"

_SEGMENT = re.compile(r"(?!\.\.?$)[A-Za-z0-9._:-]+")  # of a path: nothing that changes where it leads


class KubeClient:
    """Calls of the API server; each ends within 15 seconds (60 for a list), and raises KubeError.

    Reads and deletes are repeated while the API server is briefly out of order; creates and patches raise
    Unavailable, as they may have happened: look again, then decide again.
    """

    def __init__(self, server: Server, *, user_agent: str) -> None:
        self._transport = Transport(server, user_agent=user_agent)

    @classmethod
    async def connect(cls, *, user_agent: str) -> KubeClient:
        """A client of the API server that KUBECONFIG names, or else of the cluster that this pod is in.

        Raises KubeError when neither is known, saying what to do.
        """
        return cls(await Server.find(), user_agent=user_agent)

    async def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    async def get(self, kind: Kind[T], name: str, namespace: str | None = None) -> T:
        """The object as it is now; raises NotFound."""
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
        """Objects and the version of the list; without a namespace those of all."""
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
        """The list, with what of it cannot be read."""
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
        """Change the object: a list is a JSON-Patch (Invalid when a `test` fails), a dict a merge patch."""
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
        """Make the object have these fields, whoever owned them, and no others that `manager` applied."""
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
        """Delete the object; False: it was not there. Raises Conflict when its uid or version is another."""
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
        """What happens after `resource_version`, for at most `seconds`.

        Raises Gone when that version is too old, Unavailable when the connection is lost, or so silent that
        it must be: the API server itself ends a watch in time.
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
            raise Invalid(f"{segment!r} is not a name that an object can have", status=422, reason="Invalid")
    return kind.path(namespace, name, subresource)
