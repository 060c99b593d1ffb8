"""The bubblewrap command line of a sandbox (see bwrap(1))."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from llmsafespace_gateway.backends.local.isolation.root import UID, Bind, Folder, Link, Step, Tmpfs

# Descriptors that the keeper hands to bubblewrap under fixed numbers.
LISTEN_FD = 3  # the agent's listening socket, passed on to the agent
SECCOMP_FD = 4
STATUS_FD = 5
CLOCK_FD = 6  # the agent's pipe to its keeper's clock, passed on to the agent
WORKER_FD = 7  # the socket between agent and worker, an end for each

STAGE = "/mnt"  # where a keeper that runs as root puts the sources, in a mount namespace of its own

NAMESPACES = (
    "--unshare-all",
    "--unshare-user",
    "--disable-userns",
    "--uid",
    str(UID),
    "--gid",
    str(UID),
    "--hostname",
    "sandbox",
    "--as-pid-1",
    "--die-with-parent",
    "--new-session",
    "--clearenv",
    "--cap-drop",
    "ALL",
)


class Staged(msgspec.Struct, frozen=True):
    """A source that the keeper binds to `name` below STAGE before it gives up root."""

    source: str
    name: str


def stage(steps: Iterable[Step], bwrap: str) -> tuple[list[Step], list[Staged], str]:
    """The steps, what to stage, and bubblewrap's path, as a user sees them who may not enter the sources."""
    names: dict[str, str] = {}

    def staged(source: str) -> str:
        name = names.setdefault(source, str(len(names)))
        return f"{STAGE}/{name}"

    moved: list[Step] = []
    for step in steps:
        moved.append(Bind(staged(step.source), step.target) if isinstance(step, Bind) else step)
    program = staged(bwrap)
    return moved, [Staged(source, name) for source, name in names.items()], program


def arguments(step: Step) -> list[str]:
    """One step as options."""
    if isinstance(step, Bind):
        return ["--ro-bind", step.source, step.target]
    if isinstance(step, Tmpfs):
        made = ["--perms", f"{step.mode:04o}", "--size", str(step.size), "--tmpfs", step.target]
        return [*made, "--remount-ro", step.target] if step.read_only else made
    if isinstance(step, Folder):
        return ["--perms", "0755", "--dir", step.target]
    assert isinstance(step, Link)  # noqa: S101  # the last member of the union
    return ["--symlink", step.points_to, step.path]


def command(
    bwrap: str, steps: Iterable[Step], env: Mapping[str, str], cwd: str, argv: Sequence[str]
) -> list[str]:
    """The whole command line: namespaces, root, filter, environment, then `argv` as process 1."""
    built = [bwrap, *NAMESPACES, "--proc", "/proc", "--dev", "/dev"]
    for step in steps:
        built += arguments(step)
    built += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", cwd]
    built += ["--seccomp", str(SECCOMP_FD), "--json-status-fd", str(STATUS_FD)]
    for name, value in env.items():
        built += ["--setenv", name, value]
    return [*built, "--", *argv]
