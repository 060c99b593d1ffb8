"""Pushes a journal's entries to one stream as fast as its peer takes them, and no faster."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Protocol

from llmsafespace_agent.server.errors import conflict
from llmsafespace_agent.server.journal import Entry, Journal
from llmsafespace_protocol.frames import FrameStream

_TURN_ENTRIES = 512
_TURN_BYTES = 4 * 1024 * 1024


class Sink(Protocol):
    """What a reader writes to."""

    def entry(self, entry: Entry) -> None:
        """Send one entry."""

    def gap(self, missed: int, resume: int) -> None:
        """Tell that `missed` entries before `resume` were lost."""


class Reader:
    """A cursor into `journal` that feeds `stream` through `sink`.

    An entry without a body stands for a message that could not be kept: it is told as a gap of one.
    Only entries that `wanted` accepts are sent. `upto` ends the reading: `on_done` is called once when
    everything up to it was sent. Raises AgentError(conflict) for an `after` beyond the journal's head.
    """

    def __init__(
        self,
        journal: Journal,
        stream: FrameStream,
        sink: Sink,
        after: int,
        wanted: Callable[[Entry], bool],
        on_done: Callable[[], None] | None = None,
    ) -> None:
        check_after(journal, after)
        self._journal = journal
        self._stream = stream
        self._sink = sink
        self._wanted = wanted
        self._on_done = on_done
        self._next = after + 1
        self._upto: int | None = None
        self._replays: deque[tuple[int, int, Callable[[Entry], bool]]] = deque()
        self._waiting: asyncio.Future[None] | None = None  # the loop itself holds tasks only weakly
        self._stopped = False

    @property
    def next(self) -> int:
        """The sequence number that is looked at next."""
        return self._next

    def start(self) -> None:
        """Send what is there, then live."""
        self._journal.listen(self._appended)
        self._pump()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        self._journal.unlisten(self._appended)

    def finish(self, upto: int) -> None:
        """Stop after `upto`, which may have been passed already, and then call `on_done`."""
        self._upto = upto
        self._pump()

    def replay(self, first: int, wanted: Callable[[Entry], bool]) -> None:
        """Send again, with their old numbers, the entries from `first` that this reader has passed."""
        if first < self._next:
            self._replays.append((first, self._next, wanted))
            self._pump()

    def _appended(self, entry: Entry) -> None:
        # The hot path: a reader at the head whose peer keeps up gets the entry without a detour.
        if self._waiting or self._next != entry.seq or self._upto is not None or not self._stream.writable:
            self._pump()
            return
        self._next += 1
        if self._wanted(entry):
            self._send(entry)

    def _send(self, entry: Entry) -> None:
        if entry.body:
            self._sink.entry(entry)
        else:
            self._sink.gap(1, entry.seq + 1)

    def _pump(self) -> None:
        if self._waiting or self._stopped:
            return
        entries = size = 0
        while self._stream.writable and not self._stopped:
            entry = self._take()
            if entry is None:
                self._check_done()
                return
            entries += 1
            size += len(entry.body)
            if entries >= _TURN_ENTRIES or size >= _TURN_BYTES:  # others get their turn
                self._again(asyncio.sleep(0))
                return
        if not self._stopped:
            self._again(self._stream.drain())

    def _take(self) -> Entry | None:
        """Send the next entry (or skip it) and return it; None when there is none."""
        if self._replays:
            return self._take_replay()
        if self._next > self._journal.head or (self._upto is not None and self._next > self._upto):
            return None
        if self._next < self._journal.oldest:
            missed = self._journal.oldest - self._next
            self._next = self._journal.oldest
            self._sink.gap(missed, self._next)
            return Entry(self._next, "", "", b"")
        entry = self._journal.read(self._next)
        self._next += 1
        if entry is not None and self._wanted(entry):
            self._send(entry)
        return entry or Entry(self._next, "", "", b"")

    def _take_replay(self) -> Entry:
        first, end, wanted = self._replays[0]
        if first < self._journal.oldest:
            resume = min(self._journal.oldest, end)
            self._sink.gap(resume - first, resume)
            first = resume
        if first >= end:
            self._replays.popleft()
            return Entry(first, "", "", b"")
        entry = self._journal.read(first)
        self._replays[0] = (first + 1, end, wanted)
        if entry is not None and wanted(entry):
            self._send(entry)
        return entry or Entry(first, "", "", b"")

    def _check_done(self) -> None:
        if self._upto is not None and self._next > self._upto and not self._replays:
            self.stop()
            if self._on_done is not None:
                self._on_done()

    def _again(self, when: Coroutine[None, None, None]) -> None:
        self._waiting = asyncio.ensure_future(when)
        self._waiting.add_done_callback(self._resume)

    def _resume(self, task: asyncio.Future[None]) -> None:
        self._waiting = None
        if not self._stream.closed:
            self._pump()


def check_after(journal: Journal, after: int) -> None:
    """Refuse a place in the journal that does not exist. Raises AgentError."""
    if not 0 <= after <= journal.head:
        raise conflict(
            f"after={after} is beyond the newest sequence number {journal.head}", head=journal.head
        )
