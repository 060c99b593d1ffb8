"""All that the agent does among the processes of the code, in one place: start, signal, await, measure, kill.

Nobody else in the agent starts a process, names one to the kernel, or reads of one in /proc. Processes are
known by their numbers as the code sees them. What a process is to talk by (a log, pipes, a socket) is made by
who starts it, and handed over as descriptors.

There are two ways inside. Where the agent has a sandbox of its own, a worker in the code's does all this
(remote.py). Otherwise, in a pod and without isolation, the agent does it itself, as the first process of the
code's own namespaces (own.py).
"""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

NOWHERE = subprocess.DEVNULL


class Streams(NamedTuple):
    """Descriptors that become a process's standard streams, or NOWHERE."""

    stdin: int
    stdout: int
    stderr: int


class Total(NamedTuple):
    """What all processes use, the first one and those that have ended included."""

    memory: int = 0
    cpu: float = 0.0
    processes: int = 0
    disk: int = 0  # bytes in the workspace's own filesystem; 0 when it has none


OnCount = Callable[[int, Mapping[int, int]], None]


class Inside(Protocol):
    """The processes of one sandbox. Nothing here waits for them without a limit."""

    total: Total  # as last measured

    def reach(self, path: str) -> str:
        """A path by which the agent reaches the folder that the code calls `path`; it must exist."""
        ...

    def folder_error(self, path: str) -> int:
        """0 where the code finds a folder there; otherwise the errno that says why it does not."""
        ...

    def make_folders(self, path: str) -> None:
        """Make a folder of the code's, and its parents where they are missing. Raises OSError."""
        ...

    def listener(self, port: int) -> int | None:
        """A descriptor that listens on the code's loopback port, made over there; None: make it here.

        Raises OSError when it could not be made.
        """
        ...

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        streams: Streams,
        *,
        passed: Sequence[int] = (),
        dies_first: bool = False,
    ) -> Awaitable[int]:
        """Start a process in a session of its own; its number, which is its group's, too.

        The wish is on its way when this returns. `passed` are further descriptors, which keep their numbers.
        `dies_first`: memory pressure is to kill it before the agent, which has to tell of it; kernels see to
        that themselves. Awaiting raises OSError or ValueError when it cannot be started.
        """
        ...

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call `callback(returncode)` once when this process is dead, also when it is already."""
        ...

    def kill(self, pid: int) -> None:
        """SIGKILL to one process."""
        ...

    def signal_group(self, pid: int, number: int) -> None:
        """Signal a process that was started here, and what is still in its group."""
        ...

    def signal_tree(self, pid: int, number: int) -> None:
        """As `signal_group`, and everything below it that has left the group."""
        ...

    def kill_all(self) -> None:
        """SIGKILL to every process of the code, also to what is forked meanwhile."""
        ...

    async def measure(self) -> Total:
        """Measure anew; the last known figures where that takes too long."""
        ...

    async def held(self, pids: Sequence[int]) -> dict[int, int]:
        """Private bytes of each of these processes with everything below it; nothing when that fails."""
        ...

    def count_memory(self, limit: int, on_count: OnCount) -> bool:
        """Count all kinds of memory from now on, where that is possible; False where it is not.

        `on_count(used, held)` is told of counts near the limit of `limit` bytes, and of the first that is
        not near it any more; `held` of those over it, by process that is watched and everything below it.
        """
        ...

    def stop_counting(self) -> None:
        """End what `count_memory` began."""
        ...

    def most_memory(self) -> int:
        """Private bytes of all, never less than the truth, and quick; where nothing else counts memory."""
        ...

    def exact_memory(self) -> int:
        """As `most_memory`, but shared bytes count once. Costs milliseconds for each process."""
        ...
