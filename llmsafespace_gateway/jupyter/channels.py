"""`/api/kernels/{id}/channels`: a kernel's websocket, in three subprotocols."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from llmsafespace_gateway.access import message_allowed
from llmsafespace_gateway.access.executions import Door, Mark, mark_of
from llmsafespace_gateway.access.http import is_websocket_upgrade
from llmsafespace_gateway.access.principal import SANDBOXES_READ
from llmsafespace_gateway.backends.base import Ended
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.base import JupyterHandler
from llmsafespace_gateway.jupyter.codecs import DURABLE, codec_for, select
from llmsafespace_gateway.sandboxes.relay import CloseCode, Relay
from llmsafespace_gateway.store import kernels, sandboxes
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.kernel_messages import unpack
from llmsafespace_protocol.requests import ById, Error, OpenChannels

MAX_MESSAGE = 64 * 1024 * 1024
_MAX_SESSION = 256
_DIGESTED = 1024 * 1024
_END_GRACE = 2.0
_END_LOOKS = 8
_open: set[Relay] = set()  # of this process


class ChannelsHandler(WebSocketHandler, JupyterHandler):
    """One client's websocket. Everything that can be refused is refused before the upgrade."""

    def initialize(self) -> None:
        """Called by tornado for each request."""
        super().initialize()
        self._relay: Relay | None = None
        self._stream: FrameStream | None = None
        self._undo: list[Callable[[], None]] = []

    async def get(self, kernel_id: str) -> None:
        """Open the agent's stream, then upgrade. Raises ApiError."""
        if not is_websocket_upgrade(self):
            raise ApiError("invalid_request", "this is a websocket: send an Upgrade request")
        row, kernel = await self.access.kernel(self.principal, kernel_id, SANDBOXES_READ)
        if row.state == "ended":
            raise ApiError("gone", f"the kernel's sandbox has ended: {row.end}", {"end": row.end})
        self._row, self._kernel = row, kernel
        self._level = await self.access.level(self.principal, row)
        self._scopes = self.principal.scopes
        self._subprotocol = select(self._offered())
        self._session = self._session_id()
        try:
            self._stream = await self.sandboxes.open(
                row.id,
                OpenChannels(
                    context=kernel.id,
                    session=self._session,
                    after=self._after(),
                    durable=self._subprotocol == DURABLE,
                    principal=self.principal.user_id,
                ),
            )
            await super().get(kernel_id)
        finally:
            self._release()

    def open(self, *args: str, **kwargs: str) -> None:
        """The upgrade is done: relay."""
        if self._stream is None or self.ws_connection is None:
            return
        self.set_nodelay(True)
        websocket: Any = self.ws_connection
        self._relay = relay = Relay(
            self._stream,
            self,
            websocket.stream,
            codec_for(self._subprotocol),
            self._session,
            allowed=self._allowed,
            note=self._note,
            executing=self._executing,
            refused=self._refused,
            why_gone=self._why_gone,
        )
        _open.add(relay)
        self._websockets.inc()
        self.sandboxes.note_activity(self._kernel.id, connections_delta=1)
        self._undo = [
            self.access.watch(self.principal, self._row, self._level, self._revoked),
            self.sandboxes.on_ended(self._row.id, self._ended),
        ]
        relay.start()

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """A frame of the client's."""
        return self._relay.from_client(message) if self._relay is not None else None

    def on_close(self) -> None:
        """The client's connection has ended."""
        self._release()

    # -- what the relay needs ------------------------------------------------------------------------

    def close_socket(self, code: int, reason: str) -> None:
        """Send a close frame."""
        # Not WebSocketHandler.close(), which forgets the connection before the client has answered.
        if self.ws_connection is not None:
            self.ws_connection.close(code, reason)

    def abort_socket(self) -> None:
        """End the connection now."""
        websocket: Any = self.ws_connection
        if websocket is not None and websocket.stream is not None:
            websocket.stream.close()

    def ping_client(self) -> None:
        """Send a ping frame."""
        with contextlib.suppress(WebSocketClosedError):
            self.ping(b"")

    def _allowed(self, channel: str, msg_type: str) -> bool:
        return message_allowed(self._scopes, self._level, channel, msg_type)

    def _executing(self, msg_id: str, allowed: bool, v1: bytes) -> str | None:
        """Count and audit an execution; why it is refused, None when it is not."""
        log, kernel, door = self.access.executions, self._kernel.id, self._door
        try:
            parts = unpack(v1)[1]
            details: dict[str, Any] = {"context": kernel, "size": len(parts[3])}
            # plain Jupyter runs whatever it gets
            mark = _mark(kernel, parts) if allowed and door == "durable" else None
            if allowed:
                log.admit(self.principal, self._row.id, msg_id, door, mark, **details)
            outcome = "ok" if allowed else "forbidden"
            log.note(self.principal, self._row.id, msg_id, door, outcome, mark, **details)
        except ApiError as error:
            return error.message
        return None

    def _refused(self, error: Error) -> None:
        """The sandbox refuses a message."""
        execution = error.details.get("execution")
        if isinstance(execution, str):
            log = self.access.executions
            log.refused_by_sandbox(self.principal, self._row.id, execution, self._door, error.code)

    @property
    def _door(self) -> Door:
        return "durable" if self._subprotocol == DURABLE else "jupyter"

    def _note(self, state: str) -> None:
        self.sandboxes.note_activity(self._kernel.id, state=state)

    async def _why_gone(self) -> str | None:
        """Why the kernel is no more; None when it is there. An end may take a moment to be recorded."""
        gone: str | None = None
        for _ in range(_END_LOOKS):
            row = await sandboxes.get(self.store, self._row.id)
            if row is None or row.state == "ended":
                return _ended_text(row.end if row is not None else None, row.end_message if row else None)
            if await kernels.get(self.store, row.id, self._kernel.id) is None:
                return "the kernel was removed"
            try:
                await self.sandboxes.rpc(row.id, "contexts.get", ById(id=self._kernel.id), _END_GRACE)
                return None
            except ApiError as error:
                gone = error.message if error.code in ("gone", "not_found") else None
            await asyncio.sleep(_END_GRACE / _END_LOOKS)
        return gone

    def _revoked(self) -> None:
        if self._relay is not None:
            self._relay.end(CloseCode.KEY_REVOKED, "the key, or the grant, is no longer valid", abort=True)

    def _ended(self, ended: Ended) -> None:
        if self._relay is not None:
            self._relay.kernel_gone(_ended_text(ended.end, ended.message))

    def _release(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.client_closed()
            _open.discard(relay)
            self._websockets.dec()
            self.sandboxes.note_activity(self._kernel.id, connections_delta=-1)
        elif self._stream is not None:
            self._stream.close()

    @property
    def _websockets(self) -> Any:
        return self.settings["metrics"].websockets.labels("channels")

    # -- the request -----------------------------------------------------------------------------------

    def _offered(self) -> list[str]:
        header = self.request.headers.get("Sec-WebSocket-Protocol", "")
        return [name.strip() for name in header.split(",") if name.strip()]

    def _session_id(self) -> str:
        session = self.get_query_argument("session_id", "") or uuid.uuid4().hex
        if len(session) > _MAX_SESSION or not session.isprintable():
            raise ApiError("invalid_request", f"session_id: at most {_MAX_SESSION} printable characters")
        return session

    def _after(self) -> int | None:
        text = self.get_query_argument("after", None)
        if text is None:
            return None
        if not text.isascii() or not text.isdecimal() or len(text) > 19:
            raise ApiError("invalid_request", "after: must be a sequence number, 0 for everything")
        return int(text)

    # -- tornado ---------------------------------------------------------------------------------------

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """The best that is offered; None is the legacy JSON one."""
        return self._subprotocol

    @property
    def max_message_size(self) -> int:
        """The largest message of a client, in bytes."""
        return MAX_MESSAGE

    @property
    def ping_interval(self) -> float:
        """No pings by tornado: the relay knows when they make sense."""
        return 0

    def get_compression_options(self) -> None:
        """No compression: it costs more than the network."""

    def check_origin(self, origin: str) -> bool:
        """A key in the request is no ambient authority: scripts of other origins do not have it."""
        if self.request.headers.get("Authorization") or self.get_query_argument("token", None):
            return True
        return super().check_origin(origin)


def _mark(kernel: str, parts: list[memoryview]) -> Mark:
    """What a durable request is. Of a large one only the beginning: the agent compares it whole."""
    relevant = parts[2:4]  # metadata and content
    return mark_of("code", kernel, *((len(part), bytes(part[:_DIGESTED])) for part in relevant))


def _ended_text(end: str | None, message: str | None) -> str:
    text = f"the sandbox has ended: {end or 'lost'}"
    return f"{text} ({message})" if message else text


async def drain() -> None:
    """Close this process's kernel websockets so that clients connect again; returns when all have closed."""
    open_relays = list(_open)
    for relay in open_relays:
        relay.end(CloseCode.RESTART, "the gateway restarts; connect again")
    await asyncio.gather(*(relay.wait_closed() for relay in open_relays))
