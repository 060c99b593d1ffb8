"""A kernel's websocket over the durable subprotocol, kept open: it reconnects and goes on where it was.

Each message has a sequence number; `cursor` is the last one taken. A connection that breaks, or that has
gone silent (no byte moves, and no answer to a ping comes), is made anew with `?after=cursor`, and what has no
reply yet is sent again: nothing is lost, and the sandbox runs each id once. How long that is tried, see
patience.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Protocol, cast

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from llmsafespace import messages, patience
from llmsafespace.connections import keep_alive, tls_context
from llmsafespace.decoding import BadMessage, decode_object
from llmsafespace.errors import GatewayUnavailable, InvalidRequest, SandboxError, error_for
from llmsafespace.messages import Message
from llmsafespace.patience import Patience
from llmsafespace.transport import Transport, document_of, segment

_BROKEN = (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed, asyncio.TimeoutError, TimeoutError)
PING_AFTER = 15.0  # seconds of silence
PONG_WITHIN = 20.0  # seconds in which no byte moves, after which the peer counts as gone
MAX_MESSAGE = 64 * 1024 * 1024  # bytes; a larger one closes the connection, with all that it carries
_LOOKS = 5  # whether bytes have moved, within PONG_WITHIN
_REFUSED = {1003: "not understood", 1007: "not understood", 1009: "too large"}  # close codes, RFC 6455, 7.4.1


def check_size(frame: bytes) -> None:
    """Raise InvalidRequest for a message that the gateway does not take."""
    if len(frame) > MAX_MESSAGE:
        raise InvalidRequest(
            f"the message is too large: {len(frame)} bytes, and at most {MAX_MESSAGE} are possible; "
            "put large data into a file of the sandbox"
        )


class Listener(Protocol):
    """Who takes what comes over a channel, and knows what must be sent again."""

    def on_message(self, message: Message) -> None:
        """A message, once and in order (except those that answer a repeated request, in their order)."""

    def on_gap(self, missed: int, resume: int) -> None:
        """`missed` messages were lost to the sandbox's quota; the next has number `resume`."""

    def on_refused(self, execution: str, error: SandboxError) -> None:
        """The sandbox does not carry out this request (its msg_id; empty where it does not say)."""

    def on_lost(self, error: SandboxError) -> None:
        """The channel is closed for good."""

    def unanswered(self) -> Iterable[bytes]:
        """What to send again on a new connection: requests that do nothing new when they are repeated."""

    @property
    def wanted(self) -> bool:
        """Whether a broken connection should be made anew by itself."""

    async def ready_for_more(self) -> None:
        """Returns when more may be read."""


class _Connection(ClientConnection):
    """Knows when bytes last moved: a large message on a slow road is alive long before it is whole."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.moved = patience.now()
        self._came = False
        self._unsent = 0

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what has come."""
        self.moved, self._came = patience.now(), True
        super().data_received(data)

    def has_moved(self) -> bool:
        """Whether, since this was last asked, bytes came, or the socket took some that waited."""
        unsent = _unsent(self.transport)
        if unsent < self._unsent:
            self.moved, self._came = patience.now(), True
        moved, self._came, self._unsent = self._came, False, unsent
        return moved


class Channel:
    """The connection to one kernel. It is opened by `start()`, and anew whenever it breaks.

    `cursor` is the last sequence number that is known; None begins with what comes from now on.
    """

    def __init__(
        self,
        transport: Transport,
        kernel_id: str,
        session: str,
        listener: Listener,
        cursor: int | None = None,
    ) -> None:
        self.cursor = cursor
        self._patience = Patience(transport)
        self._heard = patience.now()  # when the last message came
        self._silent_since: float | None = None  # of a connection that we cut, as it had gone silent
        self._held_up = False  # by a reader that is behind: nothing is read, so nothing can be heard
        self._transport = transport
        self._path = f"/api/kernels/{segment(kernel_id)}/channels?session_id={segment(session)}"
        self._listener = listener
        self._socket: _Connection | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._socket is not None

    @property
    def heard(self) -> float:
        """When the last message came, or the connection was made."""
        return self._heard

    @property
    def held_up(self) -> bool:
        """True while nothing is read, since a reader is behind."""
        return self._held_up

    async def quiet(self, seconds: float) -> bool:
        """True when nothing has come for so long although somebody listened, and nothing is on its way.

        A pong proves it: it comes behind everything that was sent before. Without one the connection may be
        dead, and what is missing comes over the next one.
        """
        connection, heard = self._socket, self._heard
        if connection is None or self._held_up or patience.now() - heard < seconds:
            return False
        with contextlib.suppress(ConnectionClosed, asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._pong(connection), PONG_WITHIN)
            return self._socket is connection and self._heard == heard and not self._held_up
        return False

    def start(self) -> None:
        """Connect, unless that is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="llmsafespace-channel")

    async def send(self, frame: bytes) -> bool:
        """Send now. False when there is no connection: `unanswered()` is asked on the next one."""
        async with self._sending:
            if self._socket is None:
                return False
            try:
                await self._socket.send(frame)
            except ConnectionClosed:
                return False
            return True

    async def send_once(self, frame: bytes) -> bool:
        """Send what cannot be repeated as soon as there is a connection; False when there will be none."""
        while not await self.send(frame):
            if self._task is None or self._task.done():
                return False
            if self._socket is None:
                self._changed.clear()
                await self._changed.wait()
            else:
                await asyncio.sleep(0)  # broken, and the reader is about to notice
        return True

    async def close(self) -> None:
        """Close the connection; what runs in the kernel goes on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _serve(self) -> None:
        self._patience = Patience(self._transport)
        try:
            while True:
                made, connected = patience.now(), False
                try:
                    async with await self._dial() as connection:
                        made = self._heard = patience.now()
                        connected, self._silent_since = True, None
                        await self._use(connection)
                except _BROKEN as error:
                    refusal = _refusal(error)
                    if refusal is not None:
                        raise refusal from error
                    if isinstance(error, InvalidStatus):
                        self._transport.note_contact()
                    self._set(None)
                    if not self._listener.wanted:
                        return  # nothing is awaited from here on, so that start() sees that this is over
                    # What the peer ended lived to its end; what went silent, to its last sign of life.
                    lived_to = patience.now() if self._silent_since is None else self._silent_since
                    await self._patience.wait(error, held=lived_to - made if connected else 0.0)
        except SandboxError as error:
            self._listener.on_lost(error)
        except BadMessage as error:
            self._listener.on_lost(GatewayUnavailable(f"the gateway broke the protocol: {error}"))
        except Exception as error:
            self._listener.on_lost(GatewayUnavailable(f"the connection failed: {error!r}"))
            raise
        finally:
            self._set(None)

    async def _use(self, connection: _Connection) -> None:
        """Read to the connection's end, which comes too when the peer no longer answers."""
        pulse = asyncio.ensure_future(self._feel_pulse(connection))
        try:
            await self._resume(connection)
            await self._read(connection)
        finally:
            pulse.cancel()

    async def _feel_pulse(self, connection: _Connection) -> None:
        """Ping after a silence, and cut a connection on which nothing comes back."""
        while True:
            await asyncio.sleep(PING_AFTER)
            if self._held_up or patience.now() - connection.moved < PING_AFTER:
                continue
            try:
                await self._pong(connection)
            except ConnectionClosed:
                return
            except (asyncio.TimeoutError, TimeoutError):
                self._silent_since = connection.moved
                connection.transport.abort()
                return

    async def _pong(self, connection: _Connection) -> None:
        """Ping, and wait for the answer as long as bytes move. Raises TimeoutError, ConnectionClosed.

        Ping and pong wait behind messages of any size. While a slow reader holds us up they wait as well.
        """
        answer = asyncio.ensure_future(_ping(connection))
        still = 0
        try:
            while still < _LOOKS:
                done, _ = await asyncio.wait({answer}, timeout=PONG_WITHIN / _LOOKS)
                if done:
                    answer.result()
                    return
                still = 0 if connection.has_moved() or self._held_up else still + 1
        finally:
            answer.cancel()
        raise asyncio.TimeoutError

    async def _dial(self) -> _Connection:
        endpoint = self._transport.endpoint
        path = self._path if self.cursor is None else f"{self._path}&after={self.cursor}"
        options: dict[str, Any] = {
            "create_connection": _Connection,
            "subprotocols": [Subprotocol(messages.DURABLE)],
            "additional_headers": endpoint.headers,
            "compression": None,
            "max_size": None,
            "open_timeout": 20,
            "ping_interval": None,  # see _feel_pulse
            "close_timeout": 2,
            "user_agent_header": None,
        }
        if endpoint.socket is not None:
            return cast(
                "_Connection", await unix_connect(endpoint.socket, f"ws://localhost{path}", **options)
            )
        if endpoint.url.startswith("https:"):
            options["ssl"] = tls_context()
        if endpoint.is_local:
            options["proxy"] = None
        connection = cast("_Connection", await connect(endpoint.websocket_url + path, **options))
        keep_alive(connection.transport.get_extra_info("socket"))
        return connection

    async def _resume(self, connection: _Connection) -> None:
        if connection.subprotocol != messages.DURABLE:
            raise GatewayUnavailable(
                f"the server at {self._transport.endpoint.url} does not speak {messages.DURABLE}: "
                "is it an LLMSafeSpace gateway?"
            )
        self._transport.note_contact()
        # A channel that began live and breaks before its first message must not miss what came meanwhile.
        self.cursor = self.cursor or 0
        async with self._sending:
            for frame in list(self._listener.unanswered()):
                await connection.send(frame)
            self._set(connection)

    def _set(self, connection: _Connection | None) -> None:
        self._socket = connection
        self._changed.set()

    async def _read(self, connection: _Connection) -> None:
        async for data in connection:
            self._heard = patience.now()
            if isinstance(data, str):
                self._take_text(data)
                continue
            message = messages.unpack_durable(data)
            self._listener.on_message(message)
            if message.seq > (self.cursor or 0):
                self.cursor = message.seq
                self._patience.heard()
            self._held_up = True
            try:
                await self._listener.ready_for_more()
            finally:
                self._held_up = False
            self._heard = patience.now()
        raise ConnectionResetError("the gateway closed the connection")

    def _take_text(self, data: str) -> None:
        document = decode_object(data)
        gap, error = document.get("gap"), document.get("error")
        if isinstance(gap, dict):
            missed, resume = int(gap.get("missed", 0)), int(gap.get("resume", 0))
            self._listener.on_gap(missed, resume)
            self.cursor = max(self.cursor or 0, resume - 1)
        elif isinstance(error, dict):
            refused = error_for(400, document)
            self._listener.on_refused(str(refused.details.get("execution", "")), refused)


async def _ping(connection: ClientConnection) -> None:
    await asyncio.shield(await connection.ping())


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the socket has not taken yet."""
    # asyncio's TLS transports count only what is not encrypted yet; the rest waits in the one beneath.
    beneath = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return transport.get_write_buffer_size() + (beneath.get_write_buffer_size() if beneath else 0)


def _refusal(error: BaseException) -> SandboxError | None:
    """The exception that a refusal means; None for what another attempt may cure."""
    if isinstance(error, ConnectionClosed):
        code = error.rcvd.code if error.rcvd is not None else None
        if code in _REFUSED:
            why = error.rcvd.reason if error.rcvd is not None else ""
            return InvalidRequest(f"the message was refused as {_REFUSED[code]}: {why}")
        return None
    if not isinstance(error, InvalidStatus) or error.response.status_code in (429, 500, 502, 503, 504):
        return None
    return error_for(error.response.status_code, document_of(error.response.body or b""))
