"""A kernel's websocket over the durable subprotocol, kept open: it reconnects and goes on where it was.

Each message has a sequence number; `cursor` is the last one taken. A connection that breaks, or that has
gone silent (no message and no answer to a ping), is made anew with `?after=cursor`, and what has no reply yet
is sent again: nothing is lost, and the sandbox runs each id once. How long that is tried, see patience.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from llmsafespace import messages, patience
from llmsafespace.connections import keep_alive, tls_context
from llmsafespace.errors import GatewayUnavailable, InvalidRequest, SandboxError, error_for
from llmsafespace.messages import BadMessage, Message
from llmsafespace.patience import Patience
from llmsafespace.transport import Transport, segment

_BROKEN = (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed, asyncio.TimeoutError, TimeoutError)
PING_AFTER = 15.0  # seconds of silence
PONG_WITHIN = 20.0  # seconds, after which the peer counts as gone
_REFUSED = {1003: "not understood", 1007: "not understood", 1009: "too large"}  # close codes, RFC 6455, 7.4.1


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
        self._heard = self._alive = patience.now()  # the last message; the last sign of life
        self._cut_off = False  # by us, as it had gone silent
        self._held_up = False  # by a reader that is behind: nothing is read, so nothing can be heard
        self._transport = transport
        self._path = f"/api/kernels/{segment(kernel_id)}/channels?session_id={segment(session)}"
        self._listener = listener
        self._socket: ClientConnection | None = None
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

    async def quiet(self, seconds: float) -> bool:
        """True when nothing has come for so long although somebody listened, and nothing is on its way.

        A pong proves it: it comes behind everything that was sent before. Without one the connection may be
        dead, and what is missing comes over the next one.
        """
        connection, heard = self._socket, self._heard
        if connection is None or self._held_up or patience.now() - heard < seconds:
            return False
        with contextlib.suppress(ConnectionClosed, asyncio.TimeoutError, TimeoutError):
            await self._ping(connection)
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
                        made = self._alive = self._heard = patience.now()
                        connected, self._cut_off = True, False
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
                    lived_to = self._alive if self._cut_off else patience.now()
                    await self._patience.wait(error, held=lived_to - made if connected else 0.0)
        except SandboxError as error:
            self._listener.on_lost(error)
        except (BadMessage, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._listener.on_lost(GatewayUnavailable(f"the gateway broke the protocol: {error}"))
        except Exception as error:
            self._listener.on_lost(GatewayUnavailable(f"the connection failed: {error!r}"))
            raise
        finally:
            self._set(None)

    async def _use(self, connection: ClientConnection) -> None:
        """Read to the connection's end, which comes too when the peer no longer answers."""
        pulse = asyncio.ensure_future(self._feel_pulse(connection))
        try:
            await self._resume(connection)
            await self._read(connection)
        finally:
            pulse.cancel()

    async def _feel_pulse(self, connection: ClientConnection) -> None:
        """Ping after a silence, and cut a connection on which nothing comes back.

        Not while a slow reader holds us up: pongs wait behind messages that are not read then.
        """
        while True:
            await asyncio.sleep(PING_AFTER)
            if self._held_up or patience.now() - self._heard < PING_AFTER:
                continue
            before = self._heard
            try:
                await self._ping(connection)
            except ConnectionClosed:
                return
            except (asyncio.TimeoutError, TimeoutError):
                if self._heard == before and not self._held_up:
                    self._cut_off = True
                    connection.transport.abort()
                    return

    async def _ping(self, connection: ClientConnection) -> None:
        pong = await asyncio.wait_for(connection.ping(), PONG_WITHIN)
        await asyncio.wait_for(asyncio.shield(pong), PONG_WITHIN)
        self._alive = patience.now()

    async def _dial(self) -> ClientConnection:
        endpoint = self._transport.endpoint
        path = self._path if self.cursor is None else f"{self._path}&after={self.cursor}"
        options: dict[str, Any] = {
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
            return await unix_connect(endpoint.socket, f"ws://localhost{path}", **options)
        if endpoint.url.startswith("https:"):
            options["ssl"] = tls_context()
        if endpoint.is_local:
            options["proxy"] = None
        connection = await connect(endpoint.websocket_url + path, **options)
        keep_alive(connection.transport.get_extra_info("socket"))
        return connection

    async def _resume(self, connection: ClientConnection) -> None:
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

    def _set(self, connection: ClientConnection | None) -> None:
        self._socket = connection
        self._changed.set()

    async def _read(self, connection: ClientConnection) -> None:
        async for data in connection:
            self._heard = self._alive = patience.now()
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
            self._heard = self._alive = patience.now()
        raise ConnectionResetError("the gateway closed the connection")

    def _take_text(self, data: str) -> None:
        document = msgspec.json.decode(data, type=dict[str, Any])
        gap, error = document.get("gap"), document.get("error")
        if isinstance(gap, dict):
            missed, resume = int(gap.get("missed", 0)), int(gap.get("resume", 0))
            self._listener.on_gap(missed, resume)
            self.cursor = max(self.cursor or 0, resume - 1)
        elif isinstance(error, dict):
            refused = error_for(400, document)
            self._listener.on_refused(str(refused.details.get("execution", "")), refused)


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
    try:
        document = msgspec.json.decode(error.response.body or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        document = None
    return error_for(error.response.status_code, document)
