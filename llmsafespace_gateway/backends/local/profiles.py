"""The security levels as they are in force on the local backend."""

from __future__ import annotations

from llmsafespace_gateway.backends.base import Profile

_MEASURES = (
    "namespaces of its own: user, pid, ipc, uts, cgroup and network; nested user namespaces disabled",
    "a root that holds only the runtime's files, read-only",
    "no capabilities, no new privileges, a seccomp filter",
    "limits on memory, CPU, processes and disk; each sandbox's status says how they are enforced",
    "no network device but loopback, no DNS",
)
_NETWORK = "HTTP and HTTPS through the egress proxy only: the package index, and what networkAccess lists"


def _profile(level: str, description: str) -> Profile:
    return Profile(
        name=level,
        security_level=level,
        description=description,
        measures=_MEASURES,
        writable_paths=("/workspace", "/tmp", "/home/sandbox", "/dev/shm"),  # noqa: S108  # in the sandbox
        network=_NETWORK,
    )


PROFILES = (
    _profile("standard", "The default. Each sandbox's own `status.isolation` says what is in force."),
    _profile(
        "high",
        "Never shares a warm pool with other levels. The local backend isolates every level with all of "
        "its measures; a backend with stronger runtime classes uses them for this one.",
    ),
    _profile(
        "custom",
        "For profiles that an operator defines. Without one: as `standard`, in warm pools of its own.",
    ),
)
