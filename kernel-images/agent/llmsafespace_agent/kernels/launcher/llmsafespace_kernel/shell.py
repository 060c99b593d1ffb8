"""IPython's shell without a memory for everything that was ever printed."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator
from typing import Any

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets import Type

from . import standard_streams
from .history import History
from .interrupts import Interruption, interrupts_held, without_us

KEPT = 32 * 1024 * 1024  # bytes of results that the history, and `Out`, may keep each


class DisplayHook(ZMQShellDisplayHook):
    """Forgets the oldest results when they are too large together.

    IPython keeps the last 1,000 in `Out` and every representation in its history, however large they are.
    Here the representations have a limit, and so have those results that are text or bytes; other objects in
    `Out` are the user's own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shown: deque[tuple[int, int]] = deque()
        self._results: deque[tuple[int, int]] = deque()

    def log_output(self, format_dict: dict[str, Any]) -> None:
        """Note the representations of a result."""
        super().log_output(format_dict)
        size = sum(len(value) for value in format_dict.values() if isinstance(value, (str, bytes)))
        for count in _outgrown(self._shown, self.prompt_count, size):
            for record in ("outputs", "output_hist_reprs"):
                getattr(self.shell.history_manager, record, {}).pop(count, None)

    def update_user_ns(self, result: Any) -> None:
        """Note a result in `Out`."""
        super().update_user_ns(result)
        size = len(result) if isinstance(result, (str, bytes, bytearray)) else 0
        for count in _outgrown(self._results, self.prompt_count, size):
            self.shell.user_ns.get("_oh", {}).pop(count, None)
            for names in (self.shell.user_ns, self.shell.user_ns_hidden):
                names.pop(f"_{count}", None)


def _outgrown(sizes: deque[tuple[int, int]], count: int, size: int) -> Iterator[int]:
    """Note `size` for `count`; the counts of the oldest that are too much now (never the newest)."""
    if not size:
        return
    sizes.append((count, size))
    total = sum(each for _, each in sizes)
    while total > KEPT and len(sizes) > 1:
        oldest, smaller = sizes.popleft()
        total -= smaller
        if oldest != count:
            yield oldest


class Shell(ZMQInteractiveShell):
    """The shell of our Python kernel."""

    displayhook_class = Type(DisplayHook)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.interruption = Interruption()
        super().__init__(*arguments, **options)

    def init_history(self) -> None:
        """In memory, see there."""
        self.history_manager = History(shell=self, parent=self)
        self.configurables.append(self.history_manager)

    @functools.wraps(ZMQInteractiveShell.run_cell_async)  # ipykernel looks which parameters it has
    async def run_cell_async(self, *arguments: Any, **options: Any) -> Any:
        """Run a cell that awaits."""
        return await self.interruption.run(super().run_cell_async(*arguments, **options))

    def showtraceback(self, exc_tuple: Any = None, *arguments: Any, **options: Any) -> None:
        """Show an error; an interrupt ends in the user's own frames."""
        kind, error, trace = self._get_exc_info(exc_tuple)
        if isinstance(error, KeyboardInterrupt):
            exc_tuple = (kind, error, without_us(trace))
        with interrupts_held():  # rendering takes long, and half a traceback helps nobody
            super().showtraceback(exc_tuple, *arguments, **options)

    @contextlib.contextmanager
    def _tee(self, channel: Any) -> Iterator[None]:
        """IPython keeps a copy of all that is printed, for ever: not here."""
        yield

    async def run_code(self, *arguments: Any, **options: Any) -> bool:
        """Run a compiled statement."""
        failed: bool = await super().run_code(*arguments, **options)
        standard_streams.put_back()
        return failed
