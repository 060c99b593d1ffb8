"""The one path from events to results, whatever runs: code, commands, streams, attached executions.

A source of events (a kernel's stream in runner.py, HTTP in event_stream.py) gives batches of them.
AsyncOutput hands them to the caller, as text or typed, and ExecutionBuilder folds the same events into an
Execution.
"""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmsafespace import events, patience, values
from llmsafespace.events import End, Event
from llmsafespace.results import Execution, ExecutionError, Result

Stdin = str | Iterable[str] | Callable[[str], Any]
END_OF_INPUT = "\x04"  # what Jupyter kernels read as the end of standard input


class SandboxWarning(UserWarning):
    """Something differs from the request (another version of the runtime), or output was lost."""


class ExecutionBuilder:
    """Gathers events into an Execution, as a notebook would: updates replace, clears clear."""

    def __init__(self, execution_id: str) -> None:
        self.execution = Execution(execution_id)
        self._began: float | None = None
        self._clear_on_next = False

    def begin(self) -> None:
        """Start the clock of the execution time, unless it runs."""
        if self._began is None:
            self._began = patience.now()

    def add(self, event: Event) -> None:
        """Take the next event."""
        execution = self.execution
        if isinstance(event, (events.Stdout, events.Stderr, events.Display, events.Error)):
            self._clear_if_due()
        if isinstance(event, events.Stdout):
            execution.logs.stdout.append(event.text)
        elif isinstance(event, events.Stderr):
            execution.logs.stderr.append(event.text)
        elif isinstance(event, events.Display):
            execution.results.append(event.result)
        elif isinstance(event, events.Update):
            self._update(event.result)
        elif isinstance(event, events.Clear):
            self._clear_on_next = True
            if not event.wait:
                self._clear_if_due()
        elif isinstance(event, events.Error):
            execution.error = event.error
        elif isinstance(event, events.Comm):
            execution.comms.append(event)
        elif isinstance(event, events.Gap):
            execution.missed += event.missed
            execution.logs.stderr.append(event.text)
        elif isinstance(event, End):
            self._end(event)

    def _clear_if_due(self) -> None:
        if self._clear_on_next:
            execution = self.execution
            for shown in (execution.results, execution.logs.stdout, execution.logs.stderr):
                shown.clear()
            self._clear_on_next = False

    def _update(self, new: Result) -> None:
        for result in self.execution.results:
            if result.display_id is not None and result.display_id == new.display_id:
                result.raw, result.metadata = new.raw, new.metadata

    def _end(self, event: End) -> None:
        execution = self.execution
        execution.end = event.end
        execution.execution_count = event.execution_count
        execution.execution_time = patience.now() - self._began if self._began is not None else 0.0
        execution.error = _better(execution.error, event) if event.end != "ok" else execution.error


def _better(told: ExecutionError | None, event: End) -> ExecutionError | None:
    """The exception that the code showed, unless the end has a more exact one (a timeout, for example)."""
    if told is None or event.error is None or event.end in ("error", "interrupted"):
        return told or event.error
    return ExecutionError(event.error.name, event.error.value, event.error.traceback)


def text_of(event: Event) -> str:
    """What a terminal shows for an event: output, lost output or a traceback; "" for other events."""
    if isinstance(event, (events.Stdout, events.Stderr, events.Gap)):
        return event.text
    return event.error.plain_traceback + "\n" if isinstance(event, events.Error) else ""


def warn_of(event: Event) -> None:
    """Warn where an event says that output was lost."""
    if isinstance(event, events.Gap):
        warnings.warn(event.text.strip(), SandboxWarning, stacklevel=3)


@dataclass
class Callbacks:
    """The callbacks of a run, and the source of its input."""

    on_stdout: Callable[[str], Any] | None = None
    on_stderr: Callable[[str], Any] | None = None
    on_result: Callable[[Result], Any] | None = None
    on_error: Callable[[ExecutionError], Any] | None = None
    stdin: Stdin | None = None
    on_comm: Callable[[events.Comm], Any] | None = None

    def __post_init__(self) -> None:
        self._lines: Iterator[str] | None = None
        if self.stdin is not None and not callable(self.stdin):
            given = self.stdin
            values.check_lines(given)
            self._lines = iter(io.StringIO(given, newline=None) if isinstance(given, str) else given)

    @property
    def any(self) -> bool:
        """True when there is a callback or a source of input."""
        calls = (self.on_stdout, self.on_stderr, self.on_result, self.on_error, self.on_comm)
        return any((*calls, self.stdin is not None))

    def call(self, event: Event) -> Any:
        """Call the callback for an event. For an input request: the answer, or an awaitable of it."""
        if isinstance(event, events.Stdout):
            return self.on_stdout and self.on_stdout(event.text)
        if isinstance(event, (events.Stderr, events.Gap)):
            return self.on_stderr and self.on_stderr(event.text)
        if isinstance(event, (events.Display, events.Update)):
            return self.on_result and self.on_result(event.result)
        if isinstance(event, events.Error):
            return self.on_error and self.on_error(event.error)
        if isinstance(event, events.Comm):
            return self.on_comm and self.on_comm(event)
        return self._line(event.prompt) if isinstance(event, events.InputRequest) else None

    def _line(self, prompt: str) -> Any:
        if self._lines is not None:
            return values.plain(next(self._lines, END_OF_INPUT), "a line of stdin", nul=True).rstrip("\n")
        return self.stdin(prompt) if callable(self.stdin) else END_OF_INPUT


class AsyncOutput:
    """The output of one execution as it arrives: iterate for text, or over `.events()` for typed events.

    The execution starts with the first iteration. Leaving it early (`aclose`, a cancelled task, or dropping
    the object) interrupts it; `detach` leaves it alone.
    `execution` has the output so far; it is complete after the end.
    """

    def __init__(
        self,
        execution_id: str,
        batches: AsyncIterator[Sequence[Event]],
        answer: Callable[[str], Awaitable[None]] | None = None,
        detach: Callable[[], None] | None = None,
    ) -> None:
        self.id = execution_id
        self.end: End | None = None
        self._builder = ExecutionBuilder(execution_id)
        self._batches = batches
        self._answer = answer
        self._detach = detach
        self._waiting: list[str] = []

    @property
    def execution(self) -> Execution:
        """The output so far."""
        return self._builder.execution

    async def take(self) -> Sequence[Event]:
        """The events that have arrived, at least one. Raises StopAsyncIteration after the End."""
        self._builder.begin()
        batch = await self._batches.__anext__()
        for event in batch:
            self._builder.add(event)
            warn_of(event)
            if isinstance(event, End):
                self.end = event
        return batch

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """The events, in batches as they arrive."""
        while True:
            try:
                batch = await self.take()
            except StopAsyncIteration:
                return
            yield batch

    async def events(self) -> AsyncIterator[Event]:
        """Every event, the End last."""
        async for batch in self.batches():
            for event in batch:
                yield event

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            text = "".join(map(text_of, await self.take()))
            if text:
                return text

    async def aclose(self) -> None:
        """Stop listening; what still runs is ended, unless it was attached to."""
        close = getattr(self._batches, "aclose", None)
        if close is not None:
            await close()

    async def detach(self) -> None:
        """Stop listening, and let it go on: `attach(id)` hears it again. What has not begun never does."""
        if self._detach is not None:
            self._detach()
        await self.aclose()

    async def answer(self, line: str) -> None:
        """Answer the input request of the code with a line."""
        if self._answer is not None:
            await self._answer(line)

    async def finish(self, callbacks: Callbacks | None = None) -> Execution:
        """Wait for the end, calling the callbacks (functions or coroutine functions)."""
        try:
            async for batch in self.batches():
                for event in batch if callbacks is not None else ():
                    await self._tell(callbacks, event)
        finally:
            await self.aclose()
        return self.execution

    async def _tell(self, callbacks: Callbacks | None, event: Event) -> None:
        value = callbacks.call(event) if callbacks is not None else None
        if inspect.isawaitable(value):
            value = await value
        if isinstance(event, events.InputRequest):
            await self.answer(str(value))
