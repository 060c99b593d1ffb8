"""What the workspace takes of its filesystem."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # imports cost the worker memory
    from collections.abc import Iterable

# How runtime classes show a folder of the node: gVisor by the first, Kata by the second.
_FOLDERS = {"9p", "virtiofs"}


def used_of(workspace: str) -> int:
    """Bytes used on the workspace's own filesystem; 0 when it has none of its own (as a volume on a node)."""
    try:
        with open("/proc/self/mountinfo") as file:
            if not is_own(file, workspace):
                return 0
        space = os.statvfs(workspace)
    except OSError:
        return 0
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def is_own(mountinfo: Iterable[str], workspace: str) -> bool:
    """Whether a filesystem is mounted there as a whole; see proc(5), /proc/pid/mountinfo."""
    for line in mountinfo:
        mount, _, source = line.partition(" - ")
        root, place = mount.split(" ")[3:5]
        if (root, place) == ("/", workspace) and source.split(" ")[0] not in _FOLDERS:
            return True
    return False
