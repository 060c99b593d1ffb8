"""One accepted connection: what it is doing, how much moved on it, and when it has taken too long."""

from __future__ import annotations

import enum
import socket
from collections.abc import Callable
from typing import Any

from tornado.iostream import IOStream, SSLIOStream

from llmsafespace_gateway.serving.limits import ServingLimits


class Phase(enum.Enum):
    """What a connection waits for."""

    HEAD = "head"  # the client, for the rest of a request's head; or for the first byte after the connect
    IDLE = "idle"  # the client, for a next request
    BODY = "body"  # the client, for the rest of a request's body
    ANSWER = "answer"  # us; an open websocket too


class Stream(IOStream):
    """A socket that counts what moves, and says when it was closed, whoever closed it."""

    secure = False

    def __init__(self, connection: socket.socket, closed: Callable[[Stream], None], **options: Any) -> None:
        super().__init__(connection, **options)
        self.received = 0
        self.sent = 0
        self.record: Connection | None = None
        self._was_closed = closed

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See IOStream."""
        count = super().read_from_fd(buf)
        if count:
            self.received += count
        return count

    def write_to_fd(self, data: memoryview) -> int:
        """See IOStream."""
        count = super().write_to_fd(data)
        self.sent += count
        return count

    def close_fd(self) -> None:
        """See IOStream."""
        super().close_fd()
        self._was_closed(self)

    def has_unread(self) -> bool:
        """True when something has arrived that nobody has read yet."""
        try:
            # Of a TLS socket the method of its base: only that takes flags.
            return bool(socket.socket.recv(self.socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False


class TlsStream(Stream, SSLIOStream):
    """The same over TLS; what is counted is what is inside."""

    secure = True


class Connection:
    """The record of one connection. `peer` is its address, None on a unix socket.

    `counted` is the client that it counts for (see `proxies.group`): the peer's own, or behind a trusted
    proxy the one whose request is being served.
    """

    __slots__ = (
        "began",
        "body_from",
        "body_since",
        "counted",
        "moved",
        "peer",
        "phase",
        "request",
        "sent",
        "stream",
        "taking",
        "write_from",
        "write_since",
    )

    def __init__(self, stream: Stream, peer: str | None, counted: str | None, now: float) -> None:
        self.stream = stream
        self.peer = peer
        self.counted = counted
        self.phase = Phase.HEAD
        self.began = now  # the phase
        self.request: Any = None  # the tornado HTTP1Connection of the request
        self.taking = False  # a piece of the body is with the handler: the client is not to blame
        self.body_from = 0
        self.body_since = now
        self.sent = 0  # bytes, at the last look
        self.moved = now  # when the client was last seen to take something, or had nothing to take
        self.write_from = 0
        self.write_since = now

    def enter(self, phase: Phase, now: float) -> None:
        """Begin a phase."""
        self.phase = phase
        self.began = self.body_since = now
        self.body_from = self.stream.received

    def overdue(self, now: float, limits: ServingLimits) -> str | None:
        """Why the connection must end now, in a word for the log; None when it may go on. Looked at often."""
        if self._reads_nothing(now, limits):
            return "answers that nobody took"
        if self.phase is Phase.HEAD:
            return "no whole request head in time" if now - self.began > limits.head else None
        if self.phase is Phase.IDLE:
            if self.stream.received > self.body_from:
                self.enter(Phase.HEAD, now)
                return None
            return "idle" if now - self.began > limits.idle else None
        if self.phase is Phase.BODY and self._sends_nothing(now, limits):
            return "request bodies that did not come"
        return None

    def is_slow(self, now: float, patience: float) -> bool:
        """True when the client has held us up for `patience` seconds: it goes first when there is no room."""
        if self.phase is Phase.BODY and not self.taking:
            waited = now - self.body_since
            return waited > patience and self.stream.received - self.body_from < waited * 1024
        return self.stream.writing() and now - self.moved > patience

    def _reads_nothing(self, now: float, limits: ServingLimits) -> bool:
        sent = self.stream.sent
        waits = self.stream.writing()
        if not waits or sent != self.sent:
            self.moved, self.sent = now, sent
        if not waits:
            self.write_since, self.write_from = now, sent
        elif now - self.write_since > limits.stalled:
            if sent - self.write_from < limits.sent_least:
                return True
            self.write_since, self.write_from = now, sent
        return False

    def _sends_nothing(self, now: float, limits: ServingLimits) -> bool:
        if not self.taking and now - self.body_since <= limits.body_window:
            return False
        grown = self.stream.received - self.body_from
        late = not self.taking and grown < limits.body_least
        self.body_since, self.body_from = now, self.stream.received
        return late
