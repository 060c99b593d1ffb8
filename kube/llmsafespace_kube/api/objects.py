"""Functions for objects of every kind: key, resource version, metadata, timestamps."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from llmsafespace_kube.resources.kubernetes import Metadata

Key = tuple[str, str]  # namespace ("" if cluster-scoped), name


def metadata(item: msgspec.Struct) -> Metadata:
    """Return the metadata of an object of any kind."""
    found: Metadata = item.metadata  # type: ignore[attr-defined]
    return found


def key_of(item: msgspec.Struct) -> Key:
    """Return namespace and name of the object."""
    found = metadata(item)
    return found.namespace, found.name


def version_of(item: msgspec.Struct) -> int:
    """Return the resource version, or 0 if the object has none. Versions of one kind compare as numbers."""
    return int(metadata(item).resource_version or 0)


def micro_time() -> str:
    """Return the present time as a MicroTime. The API server requires all six digits of the fraction."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
