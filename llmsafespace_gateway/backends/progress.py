"""What a sandbox that is being made waits for, told to whoever asked for it, while it waits.

A backend tells; who wants to hear listens around the call that creates. Between them lie layers that have
nothing to do with it, so the listener is a context variable: a task begun in `listening` has the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """Why a sandbox is not ready yet: a CamelCase word, and a sentence for people."""

    reason: str
    message: str


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("progress", default=None)


def tell(reason: str, message: str) -> None:
    """Tell whoever listens; nobody, mostly."""
    listener = _listener.get()
    if listener is not None:
        listener(Progress(reason, message))


@contextmanager
def listening(listener: Callable[[Progress], None]) -> Iterator[None]:
    """Within it, and in tasks that are begun within it, `listener` hears what is told."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
