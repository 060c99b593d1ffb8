"""Encodes and decodes bodies of the API server. Only the fields of the kinds' types are decoded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple

import msgspec

from llmsafespace_kube.api.errors import KubeError, error_of
from llmsafespace_kube.api.objects import Key, key_of, version_of
from llmsafespace_kube.resources.kinds import Kind, T
from llmsafespace_kube.resources.kubernetes import Metadata

_log = logging.getLogger(__name__)


class Snapshot(NamedTuple, Generic[T]):
    """A list at one version. `unreadable` has the keys of objects that do not fit the type of their kind."""

    items: list[T]
    version: str
    unreadable: set[Key]


class WatchEvent(NamedTuple, Generic[T]):
    """A watch event: ADDED, MODIFIED, DELETED or BOOKMARK.

    `item` is None in a bookmark, and if the object cannot be decoded.
    """

    type: str
    key: Key
    version: int
    item: T | None


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bare(msgspec.Struct):
    metadata: Metadata


class _Preconditions(msgspec.Struct, rename="camel", omit_defaults=True):
    uid: str = ""
    resource_version: str = ""


class _DeleteOptions(msgspec.Struct, rename="camel"):
    propagation_policy: str
    preconditions: _Preconditions


_lists = msgspec.json.Decoder(_List)
_lines = msgspec.json.Decoder(_Line)
_bare = msgspec.json.Decoder(_Bare)


@functools.cache
def _decoder(type_: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(type_)


def decode(kind: Kind[T], body: bytes | msgspec.Raw) -> T:
    """Decode one object; raises KubeError if it does not fit the type of its kind."""
    try:
        item: T = _decoder(kind.type).decode(body)
    except msgspec.DecodeError as error:
        raise KubeError(f"a {kind.kind} cannot be read: {error}", reason="Unreadable") from None
    return item


def decode_list(kind: Kind[T], body: bytes) -> Snapshot[T]:
    """Decode a list. An object that cannot be decoded does not hide the others."""
    decoded = _lists.decode(body)
    snapshot = Snapshot[T]([], decoded.metadata.resource_version, set())
    for raw in decoded.items or ():
        item = _readable(kind, raw)
        if item is not None:
            snapshot.items.append(item)
        else:
            snapshot.unreadable.add(key_of(_bare.decode(raw)))
    return snapshot


def decode_line(kind: Kind[T], line: bytes, call: str) -> WatchEvent[T]:
    """Decode one line of a watch; raises the KubeError of an ERROR line."""
    event = _lines.decode(line)
    if event.type == "ERROR":
        raise error_of(500, bytes(event.object), call)
    item = _readable(kind, event.object) if event.type != "BOOKMARK" else None
    known = item if item is not None else _bare.decode(event.object)
    return WatchEvent(event.type, key_of(known), version_of(known), item)


def _readable(kind: Kind[T], raw: msgspec.Raw) -> T | None:
    try:
        return decode(kind, raw)
    except KubeError as error:
        _log.error("%s/%s: %s", *key_of(_bare.decode(raw)), error)
        return None


def lines_of(rest: bytes, chunk: bytes) -> tuple[Iterator[bytes], bytes]:
    """Split `rest + chunk`; return the complete lines and the incomplete rest."""
    *lines, rest = (rest + chunk).split(b"\n")
    return (line for line in lines if line), rest


def encode_object(kind: Kind[T], body: msgspec.Struct | dict[str, Any]) -> bytes:
    """Encode an object, with its apiVersion and kind added."""
    if isinstance(body, dict):
        return msgspec.json.encode({**body, "apiVersion": kind.api_version, "kind": kind.kind})
    head = f'{{"apiVersion":"{kind.api_version}","kind":"{kind.kind}",'.encode()
    return head + msgspec.json.encode(body)[1:]


def encode_delete(uid: str, resource_version: str, propagation: str) -> bytes:
    """Encode the options of a DELETE. Empty preconditions are not checked."""
    return msgspec.json.encode(_DeleteOptions(propagation, _Preconditions(uid, resource_version)))
