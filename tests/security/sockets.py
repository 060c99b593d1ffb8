"""Websockets of the security tests: kernel channels in three subprotocols, and the REST API's stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.integration.jupyter.conftest import DURABLE, V1, Channels
from tests.security.support import LIMIT, Tenant, address_for

SUBPROTOCOLS = {"legacy": None, "v1": V1, "durable": DURABLE}
CHANNELS_PATH = "/api/kernels/{kernel_id}/channels"
STREAM_PATH = "/api/v1/sandboxes/{sandbox_id}/stream"


async def dial(
    url: str, path: str, key: str | None, *, subprotocol: str | None = None, query: str = ""
) -> ClientConnection:
    """Open a websocket with a key in its header. Raises InvalidStatus when it is refused."""
    own = address_for(url)
    source: dict[str, Any] = {"local_addr": (own, 0)} if own is not None else {}
    return await connect(
        f"ws{url.removeprefix('http')}{path}{query}",
        subprotocols=[Subprotocol(subprotocol)] if subprotocol else None,
        additional_headers={"Authorization": f"Bearer {key}"} if key is not None else {},
        compression=None,
        max_size=None,
        proxy=None,
        open_timeout=LIMIT,
        **source,
    )


@contextlib.asynccontextmanager
async def channels(
    url: str, tenant: Tenant, key: str, subprotocol: str | None = None, query: str = ""
) -> AsyncIterator[Channels]:
    """The channels of the tenant's kernel."""
    session = uuid.uuid4().hex
    path = CHANNELS_PATH.format(**tenant.values)
    socket = await dial(url, path, key, subprotocol=subprotocol, query=query_of(session, query))
    try:
        yield Channels(socket, session)
    finally:
        await socket.close()


def query_of(session: str, more: str) -> str:
    """A session id in the query, unless `more` has another."""
    return f"?{more[1:]}" if "session_id=" in more else f"?session_id={session}{more}"


class Stream:
    """The …/stream websocket: one JSON message in a frame."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, message: Any) -> None:
        """Send a message, or a raw frame."""
        await self.socket.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def receive(self, kind: str) -> dict[str, Any]:
        """The next message of a type; status updates in between are left out."""
        while True:
            message: dict[str, Any] = json.loads(await asyncio.wait_for(self.socket.recv(), LIMIT))
            if message["type"] == kind:
                return message
            assert message["type"] == "status_update", message


@contextlib.asynccontextmanager
async def stream(url: str, tenant: Tenant, key: str) -> AsyncIterator[Stream]:
    """The stream of the tenant's sandbox."""
    socket = await dial(url, STREAM_PATH.format(**tenant.values), key)
    try:
        yield Stream(socket)
    finally:
        await socket.close()
