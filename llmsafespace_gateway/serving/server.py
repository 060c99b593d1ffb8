"""The HTTP server with bounds: nobody who is slow, silent or many keeps others out.

* Every connection has a phase (see `connections`), and each phase has a limit of time.
* Connections are bounded in all and for each client address. When there is no room, those go first that
  wait for a client without a request of its own: half heads, then idle ones, then slow ones. A connection
  that is refused gets 503.
* A process without free descriptors sheds in the same order, and says so once a second.
* X-Forwarded-For and X-Forwarded-Proto are believed from trusted proxies alone. A trusted proxy's own
  connections are not counted for its address, but each request on them for its client's.
* `drain` lets running requests end and tells every client to come back elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPMessageDelegate, HTTPServerConnectionDelegate

from llmsafespace_gateway.serving.connections import Connection, Phase, Stream, TlsStream
from llmsafespace_gateway.serving.limits import ServingLimits
from llmsafespace_gateway.serving.proxies import TrustedProxies, group, is_loopback
from llmsafespace_gateway.serving.requests import Request, refusal
from llmsafespace_gateway.serving.shedding import Tally, no_room_errors
from llmsafespace_gateway.serving.tls import Certificate

log = logging.getLogger("llmsafespace.serving")

MAX_BUFFER = 128 * 1024**2
MAX_BODY = 64 * 1024**2
_AT_ONCE = 128  # connections taken in one turn of the loop
_LOOK_EVERY = 1.0
_SLICE = 500  # connections looked at in one turn of the loop
_PATIENCE = 5.0  # seconds after which a slow client may be shed
_PAUSE = 0.1  # without accepting, when there are no descriptors
_SHED = 16  # connections that go when there are no descriptors
_RETRY = 1


class Server(HTTPServer):
    """An HTTPServer of one application, which may be exchanged while it serves."""

    def initialize(  # type: ignore[override]
        self,
        application: HTTPServerConnectionDelegate,
        limits: ServingLimits,
        proxies: TrustedProxies,
        certificate: Certificate | None = None,
    ) -> None:
        """Called by tornado in place of __init__."""
        super().initialize(
            application,
            max_buffer_size=MAX_BUFFER,
            max_body_size=MAX_BODY,
            idle_connection_timeout=limits.idle + limits.head,
        )
        self.limits = limits
        self.proxies = proxies
        self.certificate = certificate
        self.draining = False
        self._listening: list[socket.socket] = []
        self._open: dict[Connection, None] = {}
        self._heads: dict[Connection, None] = {}  # oldest first
        self._idle: dict[Connection, None] = {}
        self._by_client: Counter[str] = Counter()
        self._tally = Tally(log)
        self._spare: int | None = None
        self._none_slow_until = 0.0
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    def serve(self, application: HTTPServerConnectionDelegate) -> None:
        """Answer with another application from the next request on."""
        self.request_callback = application

    # -- accept --------------------------------------------------------------------------------------

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections of these listening sockets."""
        loop = asyncio.get_running_loop()
        for each in sockets:
            self._listening.append(each)
            loop.add_reader(each.fileno(), self._acceptable, each)
        if self._spare is None:
            self._take_spare()
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())

    def stop(self) -> None:
        """Listen no more; what is open stays."""
        loop = asyncio.get_running_loop()
        listening, self._listening = self._listening, []
        for each in listening:
            loop.remove_reader(each.fileno())
            each.close()

    def _acceptable(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in no_room_errors:
                    self._no_descriptors(listening, error)
                    return
                continue  # it is gone already: accept(2) tells of its errors here
            try:
                self._admit(connection, address)
            except Exception:
                connection.close()
                self._tally.note("failed to be taken")
                log.debug("a connection could not be taken", exc_info=True)

    def _admit(self, connection: socket.socket, address: Any) -> None:
        inet = connection.family in (socket.AF_INET, socket.AF_INET6)
        peer = str(address[0]) if inet else None
        counted = group(peer) if peer is not None and self._counts(peer) else None
        if counted is not None and self._by_client[counted] >= self.limits.per_address:
            self._refuse(connection, "refused: too many from one address")
            return
        full = len(self._open) >= self.limits.connections
        if (full or connection.fileno() >= self.limits.descriptor) and not self._make_room():
            self._refuse(connection, "refused: no room")
            return
        connection.setblocking(False)
        stream = self._stream(connection)
        record = stream.record = Connection(stream, peer, counted, time.monotonic())
        self._open[record] = None
        self._heads[record] = None
        if counted is not None:
            self._by_client[counted] += 1
        self.handle_stream(stream, address)

    def _stream(self, connection: socket.socket) -> Stream:
        if self.certificate is None:
            return Stream(connection, self._closed, max_buffer_size=self.max_buffer_size)
        wrapped = self.certificate.context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return TlsStream(wrapped, self._closed, max_buffer_size=self.max_buffer_size)

    def _counts(self, peer: str) -> bool:
        # Whoever connects from this machine may be a proxy that nobody has told us of.
        return not is_loopback(peer) and not self.proxies.trusts(peer)

    def _refuse(self, connection: socket.socket, why: str) -> None:
        self._tally.note(why)
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            if self.certificate is None:
                connection.send(refusal("the gateway has too many connections; try again", _RETRY))
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    # -- shed ----------------------------------------------------------------------------------------

    def _make_room(self) -> bool:
        """Close the connection that is missed least; False when all are busy."""
        for waiting, what in ((self._heads, "without a whole request head"), (self._idle, "idle")):
            for record in waiting:
                self._shed(record, what)
                return True
        now = time.monotonic()
        if now < self._none_slow_until:
            return False
        slow = next((record for record in self._open if record.is_slow(now, _PATIENCE)), None)
        if slow is None:
            self._none_slow_until = now + _LOOK_EVERY / 4
            return False
        self._shed(slow, "slow")
        return True

    def _shed(self, record: Connection, what: str) -> None:
        self._tally.note(f"shed: {what}")
        record.stream.close()

    def _no_descriptors(self, listening: socket.socket, error: OSError) -> None:
        """Shed, drop the connection that is at the door, and pause: it would be reported again at once."""
        self._tally.note(f"not taken: {errno.errorcode.get(error.errno or 0, 'error')}")
        for _ in range(_SHED):
            if not self._make_room():
                break
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            with contextlib.suppress(OSError):
                listening.accept()[0].close()
        self._take_spare()
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening.fileno())
        loop.call_later(_PAUSE, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._listening:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._acceptable, listening)

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    async def _look(self) -> None:
        """End what is overdue, and write down once a second what was shed."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self.certificate is not None:
                self.certificate.refresh()
            for start, record in enumerate(list(self._open)):
                if start % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                if record.stream.closed():
                    continue
                before = record.phase
                late = record.overdue(time.monotonic(), self.limits)
                if late is not None:
                    if late != "idle":
                        self._tally.note(f"ended: {late}")
                    record.stream.close()
                elif before is not record.phase:
                    self._place(record)
            self._tally.tell()

    # -- requests ------------------------------------------------------------------------------------

    def start_request(self, server_conn: object, request_conn: Any) -> HTTPMessageDelegate:
        """See HTTPServerConnectionDelegate: once for the first request of a connection and after each."""
        stream: Stream = server_conn.stream  # type: ignore[attr-defined]
        record = stream.record
        if record is None:
            raise RuntimeError("a connection that this server has not accepted")
        if record.request is not None:
            self._request_ended(record)
        record.request = request_conn
        return Request(self, record, super().start_request(server_conn, request_conn))

    def request_begins(self, record: Connection, client: str | None) -> bool:
        """A request's head is there; False when its client, behind a trusted proxy, has too many."""
        self._heads.pop(record, None)
        self._idle.pop(record, None)
        if self.draining:
            self._last_request(record)
        if client is None or is_loopback(client):
            return True
        counted = group(client)
        if self._by_client[counted] >= self.limits.per_address:
            self._tally.note("refused: too many from one address behind a proxy")
            return False
        record.counted = counted
        self._by_client[counted] += 1
        return True

    def _request_ended(self, record: Connection) -> None:
        if record.peer is None or self.proxies.trusts(record.peer):
            self._uncount(record)
        record.enter(Phase.IDLE, time.monotonic())
        self._place(record)
        if self.draining and not record.stream.has_unread():
            record.stream.close()

    def _place(self, record: Connection) -> None:
        self._heads.pop(record, None)
        self._idle.pop(record, None)
        if record.phase is Phase.HEAD:
            self._heads[record] = None
        elif record.phase is Phase.IDLE:
            self._idle[record] = None

    def _uncount(self, record: Connection) -> None:
        if record.counted is None:
            return
        self._by_client[record.counted] -= 1
        if self._by_client[record.counted] <= 0:
            del self._by_client[record.counted]
        record.counted = None

    def _closed(self, stream: Stream) -> None:
        record = stream.record
        if record is None or record not in self._open:
            return
        del self._open[record]
        self._heads.pop(record, None)
        self._idle.pop(record, None)
        self._uncount(record)
        self._changed.set()

    # -- drain ---------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Listen no more, end idle connections, and let each running request be its connection's last."""
        self.stop()
        self.draining = True
        for record in list(self._open):
            nothing_yet = record.phase is Phase.HEAD and not record.stream.received
            if (record.phase is Phase.IDLE or nothing_yet) and not record.stream.has_unread():
                record.stream.close()
            elif record.phase in (Phase.BODY, Phase.ANSWER):
                self._last_request(record)

    async def all_ended(self) -> None:
        """Wait until no connection is open."""
        while self._open:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End everything now."""
        self.stop()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for record in list(self._open):
            record.stream.close()
        await self.close_all_connections()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _last_request(self, record: Connection) -> None:
        # There is no public way to say it for a request that has begun; with it tornado sends
        # `Connection: close` and closes the connection after the answer.
        record.request._disconnect_on_finish = True
