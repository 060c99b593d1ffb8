"""What every object has: a key, a version, times."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from llmsafespace_kube.resources.kubernetes import Metadata

Key = tuple[str, str]  # namespace ("" if cluster-scoped), name


def metadata(item: msgspec.Struct) -> Metadata:
    """The metadata of an object of any kind."""
    found: Metadata = item.metadata  # type: ignore[attr-defined]
    return found


def key_of(item: msgspec.Struct) -> Key:
    """Where the object is."""
    found = metadata(item)
    return found.namespace, found.name


def version_of(item: msgspec.Struct) -> int:
    """The resource version; within a kind Kubernetes lets clients compare them as numbers. 0: it has none."""
    return int(metadata(item).resource_version or 0)


def micro_time() -> str:
    """Now, as a MicroTime: the API server wants all six digits, zeros as well."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
