"""A kernel's websocket over the durable subprotocol, kept open: it reconnects and goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from llmsafespace import messages
from llmsafespace.errors import GatewayUnavailable, InvalidRequest, SandboxError, error_for
from llmsafespace.messages import BadMessage, Message
from llmsafespace.transport import Patience, Transport, segment, tls_context

_BROKEN = (OSError, InvalidHandshake, InvalidMessage, ConnectionClosed, asyncio.TimeoutError, TimeoutError)
_REFUSED = {1003: "not understood", 1007: "not understood", 1009: "too large"}  # close codes, RFC 6455, 7.4.1


class Listener(Protocol):
    """Who takes what comes over a channel, and knows what must be sent again."""

    def on_message(self, message: Message) -> None:
        """A message, once and in order (except those that answer a repeated request, in their order)."""

    def on_gap(self, missed: int, resume: int) -> None:
        """`missed` messages were lost to the sandbox's quota; the next has number `resume`."""

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
        self.heard = time.monotonic()
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
        patience = Patience(self._transport)
        try:
            while True:
                try:
                    async with await self._dial() as connection:
                        await self._resume(connection)
                        patience = Patience(self._transport)
                        await self._read(connection)
                except _BROKEN as error:
                    refusal = _refusal(error)
                    if refusal is not None:
                        raise refusal from error
                    self._set(None)
                    if not self._listener.wanted:
                        return  # nothing is awaited from here on, so that start() sees that this is over
                    await patience.wait(error)
        except SandboxError as error:
            self._listener.on_lost(error)
        except BadMessage as error:
            self._listener.on_lost(GatewayUnavailable(f"the gateway broke the protocol: {error}"))
        finally:
            self._set(None)

    async def _dial(self) -> ClientConnection:
        endpoint = self._transport.endpoint
        path = self._path if self.cursor is None else f"{self._path}&after={self.cursor}"
        options: dict[str, Any] = {
            "subprotocols": [Subprotocol(messages.DURABLE)],
            "additional_headers": endpoint.headers,
            "compression": None,
            "max_size": None,
            "open_timeout": 20,
            "ping_interval": 20,
            "ping_timeout": 60,
            "close_timeout": 2,
            "user_agent_header": None,
        }
        if endpoint.socket is not None:
            return await unix_connect(endpoint.socket, f"ws://localhost{path}", **options)
        if endpoint.url.startswith("https:"):
            options["ssl"] = tls_context()
        if endpoint.is_local:
            options["proxy"] = None
        return await connect(endpoint.websocket_url + path, **options)

    async def _resume(self, connection: ClientConnection) -> None:
        if connection.subprotocol != messages.DURABLE:
            raise GatewayUnavailable(
                f"the server at {self._transport.endpoint.url} does not speak {messages.DURABLE}: "
                "is it an LLMSafeSpace gateway?"
            )
        self._transport.reached = True
        # A channel that began live and breaks before its first message must not miss what came meanwhile.
        self.cursor = self.cursor or 0
        self.heard = time.monotonic()
        async with self._sending:
            for frame in list(self._listener.unanswered()):
                await connection.send(frame)
            self._set(connection)

    def _set(self, connection: ClientConnection | None) -> None:
        self._socket = connection
        self._changed.set()

    async def _read(self, connection: ClientConnection) -> None:
        async for data in connection:
            self.heard = time.monotonic()
            if isinstance(data, str):
                self._take_text(data)
                continue
            message = messages.unpack_durable(data)
            self._listener.on_message(message)
            self.cursor = max(self.cursor or 0, message.seq)
            await self._listener.ready_for_more()
        raise ConnectionResetError("the gateway closed the connection")

    def _take_text(self, data: str) -> None:
        gap = msgspec.json.decode(data).get("gap")
        if isinstance(gap, dict):
            missed, resume = int(gap.get("missed", 0)), int(gap.get("resume", 0))
            self._listener.on_gap(missed, resume)
            self.cursor = max(self.cursor or 0, resume - 1)


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
