"""From the events of an execution to one answer.

An execution may have hundreds of thousands of outputs. Each event costs the loop the same, however many came
before it. What takes time for all of them (joining texts, freeing what was cleared) is done by a thread at
the end, or a little with each event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.sandboxes.events import (
    Clear,
    Display,
    End,
    ErrorEvent,
    Event,
    Missed,
    Stderr,
    Stdout,
    Update,
)
from llmsafespace_gateway.sandboxes.executions import broken

COLLECT_LIMIT = 20 * 1024 * 1024  # bytes of JSON; while it is encoded, an answer is in memory twice
_MAX_TEXT = 2000
_EVENT = 100  # bytes that stand for the work on one event
_FREED = 64  # cleared results that are freed with each event
_encode = msgspec.json.Encoder().encode


class Result(msgspec.Struct, kw_only=True, gc=False):
    """One rich output that stood at the end."""

    data: dict[str, msgspec.Raw]
    metadata: dict[str, msgspec.Raw] = {}
    is_main_result: bool = False
    display_id: str | None = None


class Collected(msgspec.Struct, kw_only=True):
    """Everything an execution put out, up to a size; `truncated` when there was more."""

    stdout: str = ""
    stderr: str = ""
    results: list[Result] = []
    error: ErrorEvent | None = None
    end: End
    truncated: bool = False
    missed: int = 0


async def collect(source: AsyncIterator[Event], limit: int = COLLECT_LIMIT) -> Collected:
    """All events as one answer of at most about `limit` bytes of JSON. Raises what `source` raises."""
    collector = _Collector(limit)
    async for event in source:
        if isinstance(event, End):
            return await bulk.run(collector.weight, collector.finish, event)
        collector.add(event)
    raise broken("no end of the execution")


class _Same:
    """The results that share a display id. An update is for all of them, but touches each once at most."""

    def __init__(self) -> None:
        self.fresh: list[Result] = []  # not updated yet
        self.updated: list[Result] = []
        self.latest: Update | None = None
        self.size = 0  # of all of them

    def resolve(self) -> None:
        """Give the results what the latest update says."""
        if self.latest is not None:
            for result in self.updated:
                result.data, result.metadata = self.latest.data, self.latest.metadata


class _Collector:
    def __init__(self, limit: int) -> None:
        self._left = limit
        self._events = 0
        self._taken = 0  # bytes, whatever was cleared later
        self._text: dict[type[Event], list[str]] = {Stdout: [], Stderr: []}
        self._results: list[Result] = []
        self._size = 0  # bytes of what stands now, and goes with the next clear
        self._shown: dict[str, _Same] = {}
        self._cleared: list[Result | _Same | str] = []  # still to be freed
        self._error: ErrorEvent | None = None
        self._truncated = False
        self._clear_later = False
        self._missed = 0

    @property
    def weight(self) -> int:
        """About how many bytes of work `finish` is."""
        return self._taken + self._events * _EVENT

    def add(self, event: Event) -> None:
        self._events += 1
        del self._cleared[-_FREED:]
        if isinstance(event, Stdout | Stderr):
            self._apply_clear()
            self._add_text(type(event), event.text)
        elif isinstance(event, Display):
            self._apply_clear()
            self._add_result(event)
        elif isinstance(event, Update):
            self._update(event)
        elif isinstance(event, Clear):
            self._clear_later = True
            if not event.wait:
                self._apply_clear()
        elif isinstance(event, ErrorEvent):
            self._apply_clear()
            self._set_error(event)
        elif isinstance(event, Missed):
            self._missed += event.missed

    def finish(self, end: End) -> Collected:
        """The answer. Empties the collector, which a thread does for a long one."""
        while self._cleared:
            self._cleared.pop()
        while self._shown:
            self._shown.popitem()[1].resolve()
        return Collected(
            stdout="".join(bulk.drained(self._text[Stdout])),
            stderr="".join(bulk.drained(self._text[Stderr])),
            results=self._results,
            error=self._error,
            end=end,
            truncated=self._truncated,
            missed=self._missed,
        )

    def _add_text(self, stream: type[Event], text: str) -> None:
        size = _json_size(text)
        if size > self._left:
            if self._left:
                self._text[stream].append(text[: self._left * len(text) // size])
            self._size += self._left
            self._taken += self._left
            self._left = 0
            self._truncated = True
            return
        self._take(size)
        self._size += size
        self._text[stream].append(text)

    def _set_error(self, event: ErrorEvent) -> None:
        """An error is never left out: what does not fit is cut."""
        if not self._fits(_json_size(event.value) + sum(map(_json_size, event.traceback))):
            event = msgspec.structs.replace(event, value=event.value[:_MAX_TEXT], traceback=[])
        self._error = event

    def _add_result(self, event: Display) -> None:
        size = _size(event.data)
        if not self._fits(size):
            return
        self._size += size
        result = Result(
            data=event.data,
            metadata=event.metadata,
            is_main_result=event.is_main_result,
            display_id=event.display_id,
        )
        self._results.append(result)
        if event.display_id is not None:
            same = self._shown.setdefault(event.display_id, _Same())
            same.fresh.append(result)
            same.size += size

    def _update(self, event: Update) -> None:
        same = self._shown.get(event.display_id) if event.display_id is not None else None
        if same is None:
            return
        size = _size(event.data) * (len(same.fresh) + len(same.updated))
        if not self._fits(size - same.size):
            return
        self._size += size - same.size
        same.size = size
        same.latest = event
        same.updated += same.fresh
        same.fresh.clear()

    def _apply_clear(self) -> None:
        if self._clear_later:
            self._clear_later = False
            self._left += self._size
            self._size = 0
            for texts in self._text.values():
                self._cleared += texts
                texts.clear()
            self._cleared += self._results
            self._cleared += self._shown.values()
            self._results = []
            self._shown = {}

    def _fits(self, size: int) -> bool:
        if size > self._left:
            self._truncated = True
            return False
        self._take(size)
        return True

    def _take(self, size: int) -> None:
        self._left -= size
        self._taken += size


def _json_size(text: str) -> int:
    """Bytes of `text` in JSON: a control character has six."""
    return len(_encode(text)) - 2


def _size(bundle: dict[str, Any]) -> int:
    return sum(len(mime) + len(memoryview(value)) for mime, value in bundle.items())
