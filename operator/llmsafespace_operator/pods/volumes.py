"""The writable folders of a sandbox: empty at its start, limited in size, deleted at its end."""

from __future__ import annotations

import posixpath
from typing import Any

import msgspec

from llmsafespace_kube.resources.types import Filesystem, SandboxProfile

_OWN = ("/workspace", "/tmp", "/home/sandbox")  # noqa: S108
# Both are in memory and count as the sandbox's memory. Shared memory has Docker's default size.
_RUN = ("/run/llmsafespace", "16Mi")  # the agent's sockets
_SHARED_MEMORY = ("/dev/shm", "64Mi")  # noqa: S108
_JOURNAL = "/run/llmsafespace/journal"  # the part of the journal that does not fit into the agent's memory


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """An emptyDir: its name in the pod, its mount path and its size limit."""

    name: str
    path: str
    limit: str
    memory: bool = False
    read_only: bool = False

    def volume(self) -> dict[str, Any]:
        """Return the entry of a pod's `volumes`."""
        empty = {"sizeLimit": self.limit}
        return {"name": self.name, "emptyDir": {"medium": "Memory", **empty} if self.memory else empty}

    def mount(self) -> dict[str, Any]:
        """Return the entry of a container's `volumeMounts`."""
        mount = {"name": self.name, "mountPath": self.path}
        return {**mount, "readOnly": True} if self.read_only else mount


def folders(filesystem: Filesystem, profile: SandboxProfile | None, storage: str) -> list[Folder]:
    """Return the folders to mount: those of every sandbox, then those of its spec and of its profile.

    Each folder on disk may grow to `storage`. The pod's limit of ephemeral storage counts all of them
    together.
    """
    config = profile.spec.filesystem_config if profile is not None else None
    writable = [*_OWN, *filesystem.writable_paths, *(config.writable_paths if config else ())]
    read_only = config.read_only_paths if config else []
    taken = {_RUN[0], _SHARED_MEMORY[0], _JOURNAL}
    found = [
        Folder(name="run", path=_RUN[0], limit=_RUN[1], memory=True),
        Folder(name="journal", path=_JOURNAL, limit=storage),
        Folder(name="shm", path=_SHARED_MEMORY[0], limit=_SHARED_MEMORY[1], memory=True),
    ]
    for path, locked in [*((path, False) for path in writable), *((path, True) for path in read_only)]:
        clean = posixpath.normpath(path)
        if clean not in taken:
            taken.add(clean)
            found.append(Folder(name=f"folder-{len(found)}", path=clean, limit=storage, read_only=locked))
    return found
