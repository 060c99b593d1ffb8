"""The sandbox's processes as /proc tells of them: descendants, memory, processor time.

Imported by the worker as well, in which every import costs memory a sandbox.
"""

# ruff: noqa: SIM105  # contextlib would cost the worker memory

from __future__ import annotations

import os

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROUNDS = 100
_TICK = os.sysconf("SC_CLK_TCK")
_KILL = 9


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(65536)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
        except OSError:
            pass
    return found


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, itself not included, parents before children."""
    found = _children(pid)
    seen = set(found)
    for parent in found:  # the list grows while it is walked
        for child in _children(parent):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def _pages(folder: str) -> tuple[int, int]:
    """Resident pages by this folder of /proc, all and those of files."""
    try:
        fields = _read(f"{folder}/statm").split()
        return int(fields[1]), int(fields[2])
    except (OSError, IndexError, ValueError):
        return 0, 0


def folder(pid: int) -> str:
    """The folder of /proc that tells of a process' memory: a living thread's once the main one has ended."""
    own = f"/proc/{pid}"
    if _pages(own)[0]:
        return own
    try:
        threads = sorted(map(int, os.listdir(f"{own}/task")), reverse=True)
    except OSError:
        return own
    # the newest lives longest where threads end all the time
    return next((path for one in threads if _pages(path := f"{own}/task/{one}")[0]), own)


def anonymous_memory(pid: int) -> int:
    """Resident bytes that belong to no file: what an out-of-memory kill would give back."""
    pages, files = _pages(folder(pid))
    return max(0, pages - files) * _PAGE


def exact_memory(pid: int) -> int:
    """As `anonymous_memory`, but what forked processes still share counts once in all. Costs milliseconds."""
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss_Anon:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass  # not ours to read, or an older kernel: an upper bound is better than nothing
    return anonymous_memory(pid)


def tree_memory(pid: int) -> int:
    """`anonymous_memory` of `pid` and everything below it."""
    return sum(anonymous_memory(one) for one in (pid, *descendants(pid)))


def use(pid: int) -> tuple[int, float]:
    """What a process uses now: private bytes, and seconds of processor time; nothing when it is gone."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, IndexError, ValueError):
        return 0, 0.0
    return exact_memory(pid), cpu


def signal_group(pid: int, number: int) -> None:
    """Signal a process group."""
    if pid > 1:
        try:
            os.killpg(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def signal_tree(pid: int, number: int) -> None:
    """Signal the process group `pid` and every descendant of `pid` that has left it."""
    below = descendants(pid) if pid > 1 else []
    signal_group(pid, number)
    for one in below:
        try:
            if os.getpgid(one) != pid:
                os.kill(one, number)
        except (ProcessLookupError, PermissionError):
            pass


def kill_descendants(pid: int) -> None:
    """Kill everything below `pid`, also what is forked meanwhile."""
    for _ in range(_ROUNDS):
        below = descendants(pid)
        if not below:
            return
        for one in below:
            kill(one)


def raise_oom_score(pid: int, score: int = 800) -> None:
    """Let memory pressure kill this process and not the agent, which has to tell of it."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write(str(score))
    except OSError:
        pass


def kill(pid: int) -> None:
    """SIGKILL, unless it is gone."""
    if pid > 1:
        try:
            os.kill(pid, _KILL)
        except (ProcessLookupError, PermissionError):
            pass


def total() -> tuple[int, float, int]:
    """Private bytes, processor time and number of this process and all below it, the dead included."""
    living = [os.getpid(), *descendants(os.getpid())]
    uses = [use(pid) for pid in living]
    collected = os.times()
    cpu = sum(one[1] for one in uses) + collected.children_user + collected.children_system
    return sum(one[0] for one in uses), cpu, len(living)
