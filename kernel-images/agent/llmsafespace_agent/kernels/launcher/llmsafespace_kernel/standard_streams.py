"""ipykernel flushes `sys.stdout` and `sys.stderr` before each reply, whatever code has put there.

An object that cannot be flushed, or none at all, would end the request without its reply. The modules that
flush get a `sys` of their own, whose streams are the kernel's and the user's together.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType
from typing import Any

_FLUSHING = ("ipykernel.kernelbase", "ipykernel.zmqshell", "ipykernel.displayhook")


class _Both:
    """The kernel's own stream, and what code has put in its place."""

    def __init__(self, name: str, own: Any) -> None:
        self._name = name
        self._own = own

    def flush(self) -> None:
        """Flush both. An interrupt passes, nothing else does."""
        users: Any = getattr(sys, self._name, None)
        for stream in (self._own,) if users is self._own else (users, self._own):
            with contextlib.suppress(Exception):
                stream.flush()

    def set_parent(self, parent: Any) -> None:
        """What is written from now on is output of this request."""
        self._own.set_parent(parent)
        users: Any = getattr(sys, self._name, None)
        if users is not self._own and hasattr(users, "set_parent"):
            with contextlib.suppress(Exception):
                users.set_parent(parent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


class _System(ModuleType):
    """`sys`, but for the streams of this kernel."""

    def __init__(self) -> None:
        super().__init__("sys")
        self.stdout = _Both("stdout", sys.stdout)
        self.stderr = _Both("stderr", sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


_own: dict[str, Any] = {}


def guard() -> None:
    """Call when `sys.stdout` and `sys.stderr` are the kernel's own."""
    _own.update(stdout=sys.stdout, stderr=sys.stderr)
    system = _System()
    for name in _FLUSHING:
        importlib.import_module(name).sys = system  # type: ignore[attr-defined]


def put_back() -> None:
    """The kernel's own streams where code has deleted them: IPython reads them after each statement."""
    for name, stream in _own.items():
        if not hasattr(sys, name):
            setattr(sys, name, stream)
