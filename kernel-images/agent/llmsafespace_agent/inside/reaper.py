"""The one place of the agent that collects dead children.

The agent is the sandbox's first process (or a subreaper), so every orphan of the sandbox ends up as its
child. Nobody else in the agent may wait for processes: `asyncio.create_subprocess_*` would race with it.
Spawn with `subprocess.Popen` or `os.posix_spawn` and `watch` the pid.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import OrderedDict
from collections.abc import Callable

_UNCLAIMED = 1024


class Reaper:
    """Collects every dead child and tells who watches it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: dict[int, Callable[[int], None]] = {}
        self._unclaimed: OrderedDict[int, int] = OrderedDict()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take SIGCHLD over. Call once, from the main thread (RuntimeError elsewhere)."""
        self._loop = loop
        loop.add_signal_handler(signal.SIGCHLD, self._collect)
        self._collect()

    def stop(self) -> None:
        """Give SIGCHLD back; nothing is collected any more."""
        if self._loop is not None:
            self._loop.remove_signal_handler(signal.SIGCHLD)
            self._loop = None

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call `callback(returncode)` on the loop, once, when `pid` is dead; also when it is dead already.

        `returncode` is the exit code, or -N after signal N, as in `subprocess`. A pid that is not, and
        never was, a child (its status cannot be known) is only told when it becomes one and dies.
        """
        if self._loop is None:
            raise RuntimeError("the reaper has not been started")
        status = self._unclaimed.pop(pid, None)
        if status is not None and not _exists(pid):  # otherwise the pid was given to a new process
            self._loop.call_soon(callback, status)
            return
        self._watched[pid] = callback

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._died(pid, os.waitstatus_to_exitcode(status))

    def _died(self, pid: int, returncode: int) -> None:
        callback = self._watched.pop(pid, None)
        if callback is not None and self._loop is not None:
            self._loop.call_soon(callback, returncode)
            return
        self._unclaimed[pid] = returncode
        self._unclaimed.move_to_end(pid)
        if len(self._unclaimed) > _UNCLAIMED:
            self._unclaimed.popitem(last=False)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
