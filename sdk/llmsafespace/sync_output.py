"""Output: the synchronous twin of AsyncOutput. The other twins are generated, see ../generate_sync.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmsafespace.events import End, Event, InputRequest
from llmsafespace.outputs import AsyncOutput, Callbacks
from llmsafespace.portal import Portal, SyncIterator
from llmsafespace.results import Execution


class Output:
    """The output of one execution as it arrives: iterate for text, or over `.events()` for typed events.

    The execution starts with the first iteration. Leaving it early (`close`, an exception in a `with` block,
    Ctrl-C, or dropping the object) interrupts it; `detach` leaves it alone.
    `execution` has the output so far; it is complete after the end.
    """

    def __init__(self, portal: Portal, output: AsyncOutput) -> None:
        self._portal = portal
        self._output = output
        self._texts = SyncIterator(portal, output)

    @property
    def id(self) -> str:
        """The execution's id."""
        return self._output.id

    @property
    def execution(self) -> Execution:
        """The output so far."""
        return self._output.execution

    @property
    def end(self) -> End | None:
        """How it ended, None while it runs."""
        return self._output.end

    def events(self) -> Iterator[Event]:
        """Every event, the End last."""
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[Sequence[Event]]:
        """The events, in batches as they arrive."""
        while True:
            try:
                batch = self._portal.run(self._output.take())
            except StopAsyncIteration:
                return
            yield batch

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """Stop listening; what still runs is ended, unless it was attached to."""
        self._texts.close()

    def detach(self) -> None:
        """Stop listening, and let it go on: `attach(id)` hears it again. What has not begun never does."""
        self._portal.run(self._output.detach())
        self._texts.close()

    def answer(self, line: str) -> None:
        """Answer the input request of the code with a line."""
        self._portal.run(self._output.answer(line))

    def finish(self, callbacks: Callbacks | None = None) -> Execution:
        """Wait for the end. The callbacks are called in the calling thread."""
        if callbacks is None:
            return self._portal.run(self._output.finish())
        try:
            for event in self.events():
                value = callbacks.call(event)
                if isinstance(event, InputRequest):
                    self.answer(str(value))
        finally:
            self.close()
        return self.execution

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
