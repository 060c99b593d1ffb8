"""Blocking work beside an event loop, whatever has happened to the loop and to the process.

Jupyter applications fork, and shut kernels down while Python ends. After a fork an event loop's threads are
gone and its wake-up socket is shared with the parent; while Python ends no thread pool takes work. So each
piece of work has a thread of its own, and is waited for by looking, not by being woken.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_LONGEST_LOOK = 0.02  # seconds


async def aside(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of `work`, done in a thread; in this one where no thread can be started any more."""
    outcome: dict[str, Any] = {}

    def do() -> None:
        try:
            outcome["result"] = work(*arguments, **options)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=do, name="llmsafespace-aside", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python ends
        return work(*arguments, **options)
    look = 0.001
    while not outcome:
        await asyncio.sleep(look)
        look = min(look * 1.5, _LONGEST_LOOK)
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result
