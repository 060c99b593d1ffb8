"""One execution as seen on a kernel's stream: its messages, once each and in order, as events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from llmsafespace import patience
from llmsafespace.decoding import BadMessage
from llmsafespace.errors import PermissionDenied
from llmsafespace.events import (
    End,
    Event,
    Gap,
    InputRequest,
    comm_from_message,
    end_from_reply,
    from_message,
    unreadable,
)
from llmsafespace.messages import Message
from llmsafespace.results import ExecutionError

IDLE_GRACE = 5.0  # seconds of silence between an execution's reply and its idle (or the other way round)


class Subscription:
    """The events of one execute_request, put in by the stream and taken out by whoever runs the code."""

    def __init__(self, msg_id: str, frame: bytes) -> None:
        self.msg_id = msg_id
        self.frame = frame  # what to send again after a reconnect, until the reply is here
        self.size = 0  # bytes that wait to be taken out
        self.made_at = patience.now()
        self.started_at: float | None = None
        self.ended = False
        self.input_header: bytes = b"{}"
        self._last_seq = 0
        self._told_to = 0  # what was lost up to here has been told
        self._reply: End | None = None
        self._idle = False
        self.gap = False  # messages were lost, its end perhaps among them
        self._error: BaseException | None = None
        self._events: deque[tuple[Event, int]] = deque()
        self._more = asyncio.Event()
        self.taken = asyncio.Event()

    # -- the stream's side

    def put(self, message: Message) -> None:
        """Take a message that answers this request. One that came before is ignored."""
        if self.over or (message.seq and message.seq <= self._last_seq):
            return
        self._last_seq = message.seq or self._last_seq
        try:
            self._take(message, message.header().msg_type)
        except BadMessage as error:
            self._take_unreadable(message, error)
        self._finish_if_complete()

    def _take(self, message: Message, msg_type: str) -> None:
        if message.channel == "iopub" and msg_type == "status":
            self._status(str(message.content().get("execution_state")))
        elif message.channel == "shell" and msg_type == "execute_reply":
            self._reply = end_from_reply(message.content(), message.metadata(), message.seq)
            if not message.seq and self._reply.error is not None:  # not journaled: the gateway's own refusal
                self.fail(PermissionDenied(self._reply.error.value, code="forbidden"))
        else:
            event = from_message(msg_type, message.content(), message.seq)
            if event is None and message.channel == "iopub":
                content, metadata = message.content(), message.metadata()
                event = comm_from_message(msg_type, content, metadata, message.parts[4:], message.seq)
            if isinstance(event, InputRequest):
                self.input_header = bytes(message.parts[0])
            if event is not None:
                self._add(event, sum(len(part) for part in message.parts))

    def _take_unreadable(self, message: Message, why: BadMessage) -> None:
        """Code can make its kernel send anything: say so, and go on."""
        if message.channel == "shell":
            reason = ExecutionError("UnreadableReply", str(why))
            self._reply = self._reply or End("error", None, reason, 1, seq=message.seq)
        else:
            self._add(unreadable(why, message.seq), 0)

    def put_gap(self, missed: int, resume: int) -> None:
        """Messages were lost, perhaps of this execution."""
        if not self.over:
            self.gap = True
            self._told_to = max(self._told_to, resume - 1)
            self._add(Gap(missed, seq=max(resume - 1, 0)), 0)

    async def add(self, events: Sequence[Event]) -> None:
        """Take events that were read elsewhere; returns when the reader has taken what waits."""
        for event in events:
            if isinstance(event, End):
                self.finish(event)
            elif not self.over and not isinstance(event, InputRequest):  # nobody waits for an answer
                self._add(event, 0)
        while self._events and not self.over:
            self.taken.clear()
            await self.taken.wait()

    @property
    def reached(self) -> int:
        """The sequence number up to which everything has come, or been told as lost."""
        return max(self._last_seq, self._told_to)

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        if not self.ended:
            self._error = error
            self._more.set()

    def finish(self, end: End) -> None:
        """The execution ended like this, as known from elsewhere."""
        if not self.ended:
            self.ended = True
            self._add(end, 0)

    @property
    def answered(self) -> bool:
        """True when the reply is here, so that the request need not be sent again."""
        return self._reply is not None or self.ended

    @property
    def half_ended(self) -> bool:
        """True when one of reply and idle has come without the other, which may have been lost in a gap."""
        return not self.ended and (self._idle or self._reply is not None)

    @property
    def over(self) -> bool:
        """True when there is nothing left to interrupt: it ended, or its sandbox did."""
        return self.ended or self._error is not None

    def settle(self) -> bool:
        """End with the reply alone, when there is one (its idle was lost in a gap)."""
        if self._reply is not None:
            self._idle = True
            self._finish_if_complete()
        return self.ended

    def _status(self, state: str) -> None:
        if state == "busy":
            self.started_at = self.started_at or patience.now()
        elif state == "idle":
            self._idle = True

    def _finish_if_complete(self) -> None:
        if self._idle and self._reply is not None and self._error is None:
            self.finish(self._reply)

    def _add(self, event: Event, size: int) -> None:
        self._events.append((event, size))
        self.size += size
        self._more.set()

    # -- the caller's side

    async def batch(self) -> list[Event]:
        """All events that wait, at least one. Raises what made the stream fail, after the last event."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._more.clear()
            await self._more.wait()
        events = [event for event, _ in self._events]
        self._events.clear()
        self.size = 0
        self.taken.set()
        return events
