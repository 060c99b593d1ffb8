"""SIGINT in a cell: where it is raised, and how it reaches code that waits.

Code that runs is interrupted where it is. Code that awaits is woken: the loop sleeps in a system call, and
what ipykernel schedules from a signal handler does not end that. The task of the cell is cancelled, and the
cancellation becomes the KeyboardInterrupt that it is, at the place in the user's code that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine, Generator, Iterator
from types import FrameType, TracebackType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

_PATIENCE = 2  # interrupts that cancel only; more are raised in whatever task runs
_HERE = os.path.dirname(os.path.abspath(__file__))
_CELL = InteractiveShell.run_code.__code__


class Interruption:
    """Whether the cancellation of a cell's task is an interrupt."""

    def __init__(self) -> None:
        self.asked = False

    def run(self, cell: Coroutine[Any, Any, Any]) -> Any:
        """Await `cell`; the cancellation that `wakes` asks for is a KeyboardInterrupt in it."""
        return _Driven(cell, self)

    @contextlib.contextmanager
    def wakes(self, task: asyncio.Future[Any]) -> Iterator[None]:
        """SIGINT interrupts `task`, which awaits."""
        loop = task.get_loop()
        count = 0

        def interrupt(_number: int, frame: FrameType | None) -> None:
            nonlocal count
            count += 1
            if _runs(frame, _CELL) or (count > _PATIENCE and _in_task(frame)):
                raise KeyboardInterrupt
            self.asked = True
            loop.call_soon_threadsafe(task.cancel)

        self.asked = False
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self.asked = False


class _Driven:
    """A coroutine that gets KeyboardInterrupt for the cancellation of an interrupt."""

    def __init__(self, cell: Coroutine[Any, Any, Any], interruption: Interruption) -> None:
        self._cell = cell
        self._interruption = interruption

    def __await__(self) -> Generator[Any, Any, Any]:
        thrown: BaseException | None = None
        while True:
            try:
                waited = self._cell.send(None) if thrown is None else self._cell.throw(thrown)
            except StopIteration as end:
                return end.value
            thrown = None
            try:
                yield waited
            except GeneratorExit:
                self._cell.close()
                raise
            except asyncio.CancelledError as cancelled:
                thrown = self._translated(cancelled)
            except BaseException as error:
                thrown = error

    def _translated(self, cancelled: asyncio.CancelledError) -> BaseException:
        if not self._interruption.asked:
            return cancelled
        self._interruption.asked = False
        task = asyncio.current_task()
        if hasattr(task, "uncancel"):  # Python 3.11: the code may go on, with time limits of its own
            task.uncancel()  # type: ignore[union-attr]
        return KeyboardInterrupt()


def _runs(frame: FrameType | None, code: Any) -> bool:
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _in_task(frame: FrameType | None) -> bool:
    """Whether a task or a callback runs, rather than the loop itself."""
    while frame is not None:
        if frame.f_code.co_name == "_run" and frame.f_code.co_filename.endswith("events.py"):
            return True
        frame = frame.f_back
    return False


def without_us(trace: TracebackType | None) -> TracebackType | None:
    """A traceback that ends in the user's frames: without what of ours the cell called (`print`, say)."""
    in_cell = False
    before: TracebackType | None = None
    current = trace
    while current is not None:
        code = current.tb_frame.f_code
        if in_cell and before is not None and code.co_filename.startswith(_HERE):
            before.tb_next = None
            break
        in_cell = in_cell or code is _CELL
        before, current = current, current.tb_next
    return trace


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """SIGINT does nothing inside."""
    if not in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def in_main_thread() -> bool:
    """Only there signals are handled; subshells run elsewhere."""
    return threading.current_thread() is threading.main_thread()
