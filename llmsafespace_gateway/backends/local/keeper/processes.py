"""A sandbox's processes, from outside: its cgroups, and how every one of them is killed.

To kill process 1 and leave the rest to the kernel is not enough: it takes the others along only when it gets
to run, and code may have put it where it does not (idle priority on a busy processor), for minutes. So every
process is killed by itself, again and again until none is left. What was killed forks no more, so this ends.
"""

# ruff: noqa: SIM105  # contextlib would cost each keeper a few milliseconds and more memory

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from .files import read_file, write_file

_GONE_WITHIN = 10.0  # seconds for killed processes to be gone
_LOOK_AGAIN = 0.002
_LOOK_SELDOM = 0.02


def kill_everything(
    groups: list[str], firsts: list[int], others: Callable[[], list[int]], reap: Callable[[], None]
) -> None:
    """SIGKILL every process of a sandbox until all are gone, for some seconds at most.

    `groups` are its cgroups; `firsts` are pidfds of its first processes (-1: none). Where there are no
    cgroups, `others()` are its processes. `reap()` collects those that are children of the caller.
    """
    for group in groups:
        forbid_forks(group)
        lift_cpu_limit(group)  # dying takes processor time, and a fork bomb leaves none
    until = time.monotonic() + _GONE_WITHIN
    pause = 0.0
    while True:
        left = [pid for group in groups for pid in members(group)] if groups else others()
        for pid in left:
            kill(pid)
            if pause:
                hurry(pid)
        reap()
        if (not left and all(map(ended, firsts))) or time.monotonic() > until:
            return
        pause = min(_LOOK_SELDOM, pause * 2 or _LOOK_AGAIN)
        time.sleep(pause)


def kill_left(first: str, groups: list[str]) -> None:
    """Kill what a killed keeper has left; `first` is what it wrote of the sandbox's first processes."""
    known = [one for one in map(_still, first.splitlines()) if one is not None]
    try:
        kill_everything(
            groups,
            [process for _, process in known],
            lambda: [pid for first, process in known for pid in family_alive(first, process)],
            lambda: None,
        )
    finally:
        for _, process in known:
            os.close(process)


def _still(line: str) -> tuple[int, int] | None:
    """The process of a line "number start time", and its pidfd; None when it is dead."""
    number, _, started = line.strip().partition(" ")
    if not number.isdigit() or started == "0":
        return None
    pid = int(number)
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    if start_time(pid) == started:
        return pid, process
    os.close(process)  # a later process of this number
    return None


def ended(process: int) -> bool:
    """Whether the process of a pidfd is dead (-1: there was none)."""
    if process < 0:
        return True
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def hurry(pid: int) -> None:
    """Let a killed process get to its death: undo what code may have done to its scheduling."""
    for thread in numbers(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(thread, os.sched_getaffinity(0))
        except OSError:
            pass
        try:  # as root only
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, 0)
        except OSError:
            pass


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for parent in found:  # the list grows while it is walked
        for thread in numbers(f"/proc/{parent}/task"):
            found += map(int, read_file(f"/proc/{parent}/task/{thread}/children").split())
    return found


def family_alive(pid: int, process: int) -> list[int]:
    """As `family`, of a sandbox's process 1 and its pidfd: nothing once that is dead, for then all are."""
    return [] if ended(process) else family(pid)


def numbers(folder: str) -> list[int]:
    """The names in a folder of /proc that are numbers."""
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    except OSError:
        return []


def kill(pid: int) -> None:
    """SIGKILL, unless it is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks: tells it from a later one of the same number."""
    fields = read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else "0"


def make_cgroup(group: dict[str, Any]) -> None:
    """Make a cgroup and set it up; an optional file that cannot be written is left as it is."""
    os.makedirs(group["path"], exist_ok=True)
    for name, value, needed in group["files"]:
        try:
            write_file(f"{group['path']}/{name}", value)
        except OSError:
            if needed:
                raise


def members(path: str) -> list[int]:
    """The processes in a cgroup."""
    pids = map(int, read_file(f"{path}/cgroup.procs").split())
    return [pid for pid in pids if pid]  # 0: of a pid namespace that is out of sight


def forbid_forks(path: str) -> None:
    """From now on no process in this cgroup can start another."""
    try:
        if os.path.exists(f"{path}/pids.max"):
            write_file(f"{path}/pids.max", "0")
        elif os.path.exists(f"{path}/cgroup.kill"):
            write_file(f"{path}/cgroup.kill", "1")
    except OSError:
        pass


def lift_cpu_limit(path: str) -> None:
    """Let the processes of a cgroup, which are about to die, do so at once."""
    for name, unlimited in (("cpu.max", "max"), ("cpu.cfs_quota_us", "-1")):
        if os.path.exists(f"{path}/{name}"):
            try:
                write_file(f"{path}/{name}", unlimited)
            except OSError:
                pass


def remove_cgroup(path: str) -> None:
    """Kill what is left in a cgroup and remove it."""
    until = time.monotonic() + _GONE_WITHIN
    while os.path.isdir(path):
        for pid in members(path):
            kill(pid)
        try:
            os.rmdir(path)
        except OSError:
            if time.monotonic() > until:
                return
            time.sleep(0.002)


def oom_kills(text: str) -> int:
    """The count of OOM kills in a memory.oom_control (cgroup v1) or memory.events (v2) file."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdigit():
            return int(value)
    return 0
