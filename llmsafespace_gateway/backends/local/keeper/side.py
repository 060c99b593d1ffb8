"""One of a keeper's sandboxes: bubblewrap, and what runs in it; without isolation just that.

A keeper has one or two: the code's, with a worker as process 1, and its agent's. Without a worker the agent
is process 1 of the code's. Each has cgroups, a mount namespace for its sources and a filter of its own; the
host uid is the same, as the agent reaches the code's files.
"""

# ruff: noqa: SIM105  # contextlib would cost each keeper a few milliseconds and more memory

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from .files import place_descriptors, write_file
from .processes import family_alive


class Refused(Exception):
    """The sandbox cannot be started."""


class Side:
    """One sandbox. `plan` is the keeper's, `own` this side's part of it."""

    def __init__(self, plan: dict[str, Any], own: dict[str, Any], uid: int | None) -> None:
        self.plan = plan
        self.own = own
        self.uid = uid
        self.child = 0  # bubblewrap, until it has been collected
        self.first = 0  # process 1 of the sandbox, by its number on the host
        self.first_fd = -1  # the same as a pidfd
        self.child_fd = -1
        self.reaped: int | None = None  # the exit status of `child`

    @property
    def groups(self) -> list[str]:
        """The paths of its cgroups."""
        return [group["path"] for group in self.own["cgroups"]]

    def start(self, given: dict[int, int], output: int) -> None:
        """Fork it with the descriptors `given` by their numbers in there; `output` takes what it says."""
        self.status, status_write = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            try:
                self._become({**given, 1: output, 2: output}, status_write)
            except BaseException as error:
                os.write(output, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(126)
        os.close(status_write)
        self.child_fd = os.pidfd_open(self.child)

    def meet(self) -> None:
        """Wait until its first process is there, and limit that. Raises Refused."""
        self.first = self._first_process() if self.plan["bwrap"] else self.child
        try:
            self.first_fd = os.pidfd_open(self.first)
        except ProcessLookupError:
            pass  # it died at once: who waits for the child hears how
        self._limit_first()

    def others(self) -> list[int]:
        """Every process of this sandbox that is not dead, as the tree of processes tells."""
        below = family_alive(self.first, self.first_fd) if self.first else []
        if below:
            return below
        return [self.child] if self.child else []  # bubblewrap itself comes last: its end frees nobody

    def _become(self, wanted: dict[int, int], status: int) -> None:
        """In the child: cgroups, sources staged, descriptors, limits, the uid, then bubblewrap."""
        plan = self.plan
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for group in self.groups:
            write_file(f"{group}/cgroup.procs", "0")
        if self.own["staged"] is not None:
            from .staging import stage

            stage(plan["stage"], self.own["staged"])
        if plan["bwrap"] is not None:
            wanted[plan["seccomp_fd"]] = os.open(plan["seccomp"], os.O_RDONLY)
            wanted[plan["status_fd"]] = status
        place_descriptors(wanted)
        os.umask(0o022)
        os.chdir(self.own["cwd"])
        if plan["bwrap"] is None:
            os.setsid()
        for kind, value in plan["rlimits"]:
            hard = resource.getrlimit(kind)[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (limit, limit))
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        os.execve(self.own["argv"][0], self.own["argv"], self.own["env"])  # noqa: S606

    def _first_process(self) -> int:
        """Wait for bubblewrap to name the sandbox's first process."""
        text = b""
        while b"\n" not in text:
            piece = os.read(self.status, 4096)
            if not piece:
                raise Refused("bubblewrap failed")
            text += piece
        return int(text.split(b'"child-pid":')[1].split(b",")[0].split(b"}")[0])

    def _limit_first(self) -> None:
        """Limits of process 1, inherited by all others. Its real uid may set them; root without
        CAP_SYS_RESOURCE may not, so root is that uid meanwhile.
        """
        if self.uid is not None:
            os.setresgid(self.uid, -1, -1)
            os.setresuid(self.uid, -1, -1)
        try:
            for kind, value in self.plan["inside_rlimits"]:
                resource.prlimit(self.first, kind, (value, value))
        finally:
            if self.uid is not None:
                os.setresuid(0, -1, -1)
                os.setresgid(0, -1, -1)
