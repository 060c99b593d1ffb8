"""`/api/kernels/{id}/channels`: a kernel's websocket, in three subprotocols."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Awaitable
from typing import Any

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from llmsafespace_gateway.access.http import is_websocket_upgrade
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.base import JupyterHandler
from llmsafespace_gateway.jupyter.codecs import DURABLE, codec_for, select
from llmsafespace_gateway.services import Caller
from llmsafespace_gateway.services.channels import Channels
from llmsafespace_gateway.services.types import Relay

MAX_MESSAGE = 64 * 1024 * 1024
_MAX_SESSION = 256


class ChannelsHandler(WebSocketHandler, JupyterHandler):
    """One client's websocket. Everything that can be refused is refused before the upgrade."""

    def initialize(self) -> None:
        """Called by tornado for each request."""
        super().initialize()
        self._channels: Channels | None = None
        self._relay: Relay | None = None

    async def get(self, kernel_id: str) -> None:
        """Open the agent's stream, then upgrade. Raises ApiError."""
        if not is_websocket_upgrade(self):
            raise ApiError("invalid_request", "this is a websocket: send an Upgrade request")
        self._subprotocol = select(self._offered())
        self._session = self._session_id()
        caller = Caller(self.principal, "durable") if self._subprotocol == DURABLE else self.caller
        try:
            self._channels = await self.services.channels.open(
                caller, kernel_id, self._session, self._after()
            )
            await super().get(kernel_id)
        finally:
            self._release()

    def open(self, *args: str, **kwargs: str) -> None:
        """The upgrade is done: relay."""
        if self._channels is None or self.ws_connection is None:
            return
        self.set_nodelay(True)
        websocket: Any = self.ws_connection
        codec = codec_for(self._subprotocol)
        self._relay = self._channels.relay(self, websocket.stream, codec, self._session)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """A frame of the client's."""
        return self._relay.from_client(message) if self._relay is not None else None

    def on_close(self) -> None:
        """The client's connection has ended."""
        self._release()

    def _release(self) -> None:
        self._relay = None
        channels, self._channels = self._channels, None
        if channels is not None:
            channels.close()

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
