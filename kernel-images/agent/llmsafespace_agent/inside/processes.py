"""The sandbox's processes as /proc tells of them: descendants, memory, processor time."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROUNDS = 100
_TICK = os.sysconf("SC_CLK_TCK")


class Use(NamedTuple):
    """What one process uses: private bytes in memory and seconds of processor time."""

    memory: int
    cpu: float


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
        with contextlib.suppress(OSError):
            found += map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
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


def use(pid: int) -> Use:
    """What a process uses now; nothing when it is gone."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, IndexError, ValueError):
        return Use(0, 0.0)
    return Use(exact_memory(pid), cpu)


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Signal the process group `pid` and every descendant of `pid` that has left it."""
    below = descendants(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    for one in below:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(one) != pid:
                os.kill(one, number)


def kill_descendants(pid: int) -> None:
    """Kill everything below `pid`, also what is forked meanwhile."""
    for _ in range(_ROUNDS):
        below = descendants(pid)
        if not below:
            return
        for one in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)


def raise_oom_score(pid: int, score: int = 800) -> None:
    """Let memory pressure kill this process and not the agent, which has to tell of it."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write(str(score))
