"""An append-only journal: sequence numbers from 1, a bounded part in memory, older entries on disk.

When the disk quota is full too, the oldest entries go, a segment at a time. Readers hold nothing here but
a number, so that a slow one costs nothing; what it missed it learns from `oldest`.
"""

from __future__ import annotations

import os
import struct
import tempfile
from array import array
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_ENTRY_COST = 256  # what an entry costs in memory beside its bytes
_HEAD = struct.Struct(">HHI")  # lengths of `to`, `about`, `body`
_MAX_TAG = 0xFFFF


class Entry(NamedTuple):
    """One message. `to` is the session it is for ('' for all), `about` the request that caused it."""

    seq: int
    to: str
    about: str
    body: bytes


class _Segment:
    """A run of entries in one file that has no name, so that nothing is left behind."""

    def __init__(self, folder: Path, first: int) -> None:
        handle, name = tempfile.mkstemp(prefix="journal-", dir=folder)
        os.unlink(name)
        self._handle = handle
        self.first = first
        self.size = 0
        self._offsets = array("Q")

    @property
    def end(self) -> int:
        """The sequence number after the last entry."""
        return self.first + len(self._offsets)

    def append(self, entry: Entry) -> None:
        """Write one entry at the end. Raises OSError, and then the segment is as before."""
        to, about = entry.to.encode(), entry.about.encode()
        data = b"".join((_HEAD.pack(len(to), len(about), len(entry.body)), to, about, entry.body))
        view = memoryview(data)
        offset = self.size
        while view:
            written = os.pwrite(self._handle, view, offset)
            offset += written
            view = view[written:]
        self._offsets.append(self.size)
        self.size += len(data)

    def read(self, seq: int) -> Entry:
        """The entry of `seq`, which lies within this segment."""
        index = seq - self.first
        start = self._offsets[index]
        stop = self._offsets[index + 1] if index + 1 < len(self._offsets) else self.size
        data = os.pread(self._handle, stop - start, start)
        to_length, about_length, _ = _HEAD.unpack_from(data)
        about = _HEAD.size + to_length
        body = about + about_length
        return Entry(seq, data[_HEAD.size : about].decode(), data[about:body].decode(), data[body:])

    def close(self) -> None:
        os.close(self._handle)


class Journal:
    """Entries in order; `memory` and `disk` are quotas in bytes. `folder` takes what memory cannot hold."""

    def __init__(self, folder: Path, memory: int, disk: int) -> None:
        self._folder = folder
        self._memory_quota = memory
        self._disk_quota = disk
        self._segment_size = max(64 * 1024, min(16 * 1024 * 1024, disk // 8))
        self._recent: list[Entry] = []
        self._recent_first = 1
        self._recent_bytes = 0
        self._segments: deque[_Segment] = deque()
        self._disk_bytes = 0
        self._oldest = 1
        self._listeners: list[Callable[[Entry], None]] = []

    @property
    def head(self) -> int:
        """The newest sequence number, 0 when there is none yet."""
        return self._recent_first + len(self._recent) - 1

    @property
    def oldest(self) -> int:
        """The oldest sequence number that can still be read (head + 1 when there is none)."""
        return self._oldest

    def listen(self, callback: Callable[[Entry], None]) -> None:
        """Call `callback` with each entry appended from now on."""
        self._listeners.append(callback)

    def unlisten(self, callback: Callable[[Entry], None]) -> None:
        """Stop calling `callback`."""
        if callback in self._listeners:
            self._listeners.remove(callback)

    def append(self, body: bytes, to: str = "", about: str = "") -> int:
        """Append one entry, tell the listeners, and return its sequence number."""
        seq = self.head + 1
        entry = Entry(seq, to, about, body)
        self._recent.append(entry)
        self._recent_bytes += len(body) + _ENTRY_COST
        if self._recent_bytes > self._memory_quota:
            self._spill()
        for listener in tuple(self._listeners):
            listener(entry)
        return seq

    def read(self, seq: int) -> Entry | None:
        """The entry of `seq`; None when it is older than what is kept. IndexError beyond the head."""
        if seq >= self._recent_first:
            return self._recent[seq - self._recent_first]
        if seq < self._oldest:
            return None
        for segment in self._segments:
            if seq < segment.end:
                return segment.read(seq) if seq >= segment.first else None
        return None

    def close(self) -> None:
        """Give memory and disk back; the journal cannot be used any more."""
        self._listeners.clear()
        while self._segments:
            self._segments.popleft().close()
        self._recent.clear()

    def _spill(self) -> None:
        """Move the older half from memory to disk: seldom and much, rather than often and little."""
        count = 0
        while self._recent_bytes > self._memory_quota // 2 and count < len(self._recent):
            entry = self._recent[count]
            self._to_disk(entry)
            self._recent_bytes -= len(entry.body) + _ENTRY_COST
            count += 1
        del self._recent[:count]
        self._recent_first += count

    def _to_disk(self, entry: Entry) -> None:
        size = len(entry.body) + len(entry.to) + len(entry.about) + _HEAD.size
        while self._segments and self._disk_bytes + size > self._disk_quota:
            self._forget_segment()
        if size > self._disk_quota:
            self._lose_up_to(entry.seq)
            return
        try:
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.end != entry.seq or segment.size >= self._segment_size:
                segment = _Segment(self._folder, entry.seq)
                self._segments.append(segment)
            before = segment.size
            segment.append(entry)
            self._disk_bytes += segment.size - before
        except OSError:  # the disk is full before the quota is
            self._lose_up_to(entry.seq)

    def _lose_up_to(self, seq: int) -> None:
        """`seq` cannot be kept; what is older goes with it, so that what is kept has no hole."""
        while self._segments:
            self._forget_segment()
        self._oldest = seq + 1

    def _forget_segment(self) -> None:
        segment = self._segments.popleft()
        self._disk_bytes -= segment.size
        self._oldest = max(self._oldest, segment.end)
        segment.close()
