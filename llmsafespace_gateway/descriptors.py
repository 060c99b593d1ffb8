"""How many files and sockets this process may have open.

A gateway needs as many as it can get; a program in a sandbox may use select(), which breaks on descriptors
from 1024 on. So the limit is raised here, and children get the one that this process was started with.
"""

from __future__ import annotations

import resource

_started_with = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_limit() -> int:
    """Raise the soft limit to the hard one where that is possible; the limit that holds from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # an unlimited hard limit that the kernel's own bound forbids
            return soft
    return limit()


def limit() -> int:
    """The number of descriptors that this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def give_back(pid: int) -> None:
    """Give a child process, which has not begun its work, the limit that this process was started with."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, _started_with)
