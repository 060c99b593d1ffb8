"""A small Jupyter client for tests: HTTP, and the channels websocket in its three subprotocols."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

import httpx
import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    serialize_binary_message,
)
from websockets.asyncio.client import ClientConnection, connect

from llmsafespace_protocol.kernel_messages import pack, unpack

V1 = "v1.kernel.websocket.jupyter.org"
DURABLE = "v1.durable.llmsafespace.dev"
LIMIT = 60.0
Message = dict[str, Any]


class Channels:
    """One websocket to a kernel. Messages are dicts in Jupyter's shape, plus `seq` where there is one."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self.socket = socket
        self.session = session
        self.texts: list[Any] = []

    async def send(
        self,
        msg_type: str,
        content: Message,
        *,
        channel: str = "shell",
        msg_id: str | None = None,
        parent: Message | None = None,
        metadata: Message | None = None,
        buffers: tuple[bytes, ...] = (),
    ) -> str:
        """Send a message; its id."""
        header = {"msg_id": msg_id or uuid.uuid4().hex, "msg_type": msg_type, "session": self.session}
        header |= {"username": "test", "date": "2026-01-02T03:04:05.000006Z", "version": "5.4"}
        message = {"header": header, "parent_header": parent or {}, "metadata": metadata or {}}
        message["content"] = content
        if self.socket.subprotocol is not None:
            await self.socket.send(
                pack(channel, [*(json.dumps(part).encode() for part in message.values()), *buffers])
            )
        elif buffers:
            binary = serialize_binary_message(message | {"channel": channel, "buffers": list(buffers)})
            await self.socket.send(binary)
        else:
            await self.socket.send(json.dumps(message | {"channel": channel, "buffers": []}))
        return str(header["msg_id"])

    async def receive(self) -> Message:
        """The next message; text frames of the durable subprotocol are kept in `texts`."""
        while True:
            frame = await asyncio.wait_for(self.socket.recv(), LIMIT)
            if self.socket.subprotocol is None:
                said: Message = (
                    json.loads(frame) if isinstance(frame, str) else deserialize_binary_message(frame)
                )
                return said
            if isinstance(frame, bytes):
                break
            self.texts.append(json.loads(frame))
        durable = self.socket.subprotocol == DURABLE
        channel, parts = unpack(frame[8:] if durable else frame)
        names = ("header", "parent_header", "metadata", "content")
        message: Message = {
            name: json.loads(bytes(part)) for name, part in zip(names, parts[:4], strict=True)
        }
        message |= {"channel": channel, "buffers": [bytes(part) for part in parts[4:]]}
        if durable:
            message["seq"] = int.from_bytes(frame[:8], "big")
        return message

    async def until(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """Messages up to the first that is wanted, that one included."""
        got: list[Message] = []
        while not got or not wanted(got[-1]):
            got.append(await self.receive())
        return got

    async def answers(self, msg_id: str) -> list[Message]:
        """All messages that a request caused, up to its reply and its idle."""
        mine: list[Message] = []
        replied = idle = False
        while not (replied and idle):
            message = await self.receive()
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            mine.append(message)
            replied = replied or message["channel"] in ("shell", "control")
            idle = idle or message["content"].get("execution_state") == "idle"
        return mine

    async def run(self, code: str, **options: Any) -> list[Message]:
        """Execute code and return everything that came of it."""
        return await self.answers(await self.execute(code, **options))

    async def execute(self, code: str, *, allow_stdin: bool = False, **options: Any) -> str:
        """Send an execute_request; its id."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        return await self.send(
            "execute_request", content | {"allow_stdin": allow_stdin, "stop_on_error": True}, **options
        )

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait until the gateway closes; its code and reason."""
        await asyncio.wait_for(self.socket.wait_closed(), LIMIT)
        return self.socket.close_code, self.socket.close_reason


class Api:
    """The Jupyter API with one key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self._http = httpx.AsyncClient(base_url=url, timeout=LIMIT, trust_env=False)
        self._kernels: list[str] = []

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content: bytes | None = None,
        auth: str | None = None,
    ) -> httpx.Response:
        """One request; `auth` replaces the Authorization header ('' sends none)."""
        header = f"token {self.key}" if auth is None else auth
        headers = {"Authorization": header} if header else {}
        if body is not None:
            content = json.dumps(body).encode()
        return await self._http.request(method, path, content=content, headers=headers)

    async def start(self, **body: Any) -> Message:
        """Start a kernel, which ends with the test."""
        answer = await self.request("POST", "/api/kernels", body)
        assert answer.status_code == 201, answer.text
        model: Message = answer.json()
        self._kernels.append(model["id"])
        return model

    @contextlib.asynccontextmanager
    async def channels(
        self,
        kernel_id: str,
        *subprotocols: Any,
        session: str | None = None,
        after: int | None = None,
        **options: Any,
    ) -> AsyncIterator[Channels]:
        """Connect to a kernel."""
        session = session or uuid.uuid4().hex
        query = f"session_id={session}" + (f"&after={after}" if after is not None else "")
        socket = await connect(
            f"ws{self.url.removeprefix('http')}/api/kernels/{kernel_id}/channels?{query}",
            subprotocols=list(subprotocols) or None,
            additional_headers={"Authorization": f"Bearer {self.key}"},
            compression=None,
            max_size=None,
            proxy=None,
            **options,
        )
        try:
            yield Channels(socket, session)
        finally:
            await socket.close()

    async def close(self) -> None:
        """End the kernels that were started."""
        for kernel_id in self._kernels:
            await self.request("DELETE", f"/api/kernels/{kernel_id}")
        await self._http.aclose()


@pytest.fixture(scope="session")
def keys(gateway: Any) -> Callable[..., str]:
    """`keys(user, role, tenant)`: one key for each combination."""
    return cache(gateway.key)


@pytest.fixture
async def make_api() -> AsyncIterator[Callable[[str, str], Api]]:
    """`make_api(url, key)`: the API of a gateway."""
    made: list[Api] = []

    def make(url: str, key: str) -> Api:
        made.append(Api(url, key))
        return made[-1]

    yield make
    for api in made:
        await api.close()


@pytest.fixture
def api_for(
    gateway: Any, keys: Callable[..., str], make_api: Callable[[str, str], Api]
) -> Callable[..., Api]:
    """`api_for(user, role, tenant)`: the API of the shared gateway with a key of that user."""

    def make(user: str, role: str = "developer", tenant: str = "default", *options: str) -> Api:
        return make_api(gateway.url, keys(user, role, tenant, *options))

    return make


@pytest.fixture
def api(api_for: Callable[..., Api]) -> Api:
    """The API as an ordinary developer."""
    return api_for("jupyter-user")
