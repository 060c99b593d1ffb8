"""How journal entries of a context look on a stream."""

from __future__ import annotations

import struct

import msgspec

from llmsafespace_agent.server.journal import Entry
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import Gap

_SEQ = struct.Struct(">Q")


class KernelSink:
    """KERNEL frames (`u64 seq | v1`) and `Gap` frames."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream

    def entry(self, entry: Entry) -> None:
        """Send one kernel message."""
        self._stream.send(FrameKind.KERNEL, _SEQ.pack(entry.seq), entry.body)

    def gap(self, missed: int, resume: int) -> None:
        """Tell what was lost."""
        self._stream.send(FrameKind.JSON, msgspec.json.encode(Gap(missed, resume)))
