"""Handlers behind the access control, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler, websocket_connect

from llmsafespace_gateway.access import Access, local_principal
from llmsafespace_gateway.access.http import AuthenticatedHandler
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, sqlite_url


class Who(AuthenticatedHandler):
    """Says who asks, or why not."""

    def get(self) -> None:
        if self.get_query_argument("refuse", ""):
            raise ApiError("not_found", "refused")
        self.finish({"user": self.principal.user})

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1]
        assert isinstance(error, ApiError)
        self.set_status(error.status)
        self.finish({"error": error.code})


class Talk(WebSocketHandler, Who):
    """Says who has connected."""

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return WebSocketHandler.get(self, *args, **kwargs)

    async def open(self, *args: str, **kwargs: str) -> None:
        await self.write_message(self.principal.user)


class Served:
    """A served application and its admin's key."""

    def __init__(self, access: Access, port: int, key: str) -> None:
        self.access = access
        self.port = port
        self.key = key

    async def get(self, path: str = "/who", **headers: str) -> HTTPResponse:
        url = f"http://127.0.0.1:{self.port}{path}"
        return await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a small rate limit."""
    store = await Store.open(sqlite_url(tmp_path))
    access = Access(store, rate=0.01, burst=5)
    key = await access.first_run()
    server = HTTPServer(Application([("/who", Who), ("/talk", Talk)], access=access))
    sock, port = bind_unused_port()
    server.add_socket(sock)
    yield Served(access, port, key or "")
    server.stop()
    await server.close_all_connections()
    await store.close()


async def test_a_key_in_the_header(served: Served) -> None:
    for scheme in ("Bearer", "token", "bearer"):
        answer = await served.get(Authorization=f"{scheme} {served.key}")
        assert (answer.code, json.loads(answer.body)) == (200, {"user": "admin"})
    assert answer.headers["X-RateLimit-Limit"] == "5"
    assert answer.headers["X-RateLimit-Remaining"] == "2"
    assert answer.headers["X-RateLimit-Reset"].isdigit()


async def test_no_key_or_a_bad_one(served: Served) -> None:
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Cookie": f"token={served.key}"}):
        answer = await served.get(**headers)
        assert (answer.code, json.loads(answer.body)) == (401, {"error": "unauthorized"})
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_key_in_the_query_is_for_websockets_only(served: Served) -> None:
    assert (await served.get(f"/who?token={served.key}")).code == 401
    assert (await served.get(f"/talk?token={served.key}")).code == 401
    url = f"ws://127.0.0.1:{served.port}/talk"
    connection = await websocket_connect(f"{url}?token={served.key}")
    assert await connection.read_message() == "admin"
    connection.close()
    with pytest.raises(Exception, match="401"):
        await websocket_connect(f"{url}?token=nonsense")
    with pytest.raises(Exception, match="401"):
        await websocket_connect(url)


async def test_too_many_requests(served: Served) -> None:
    headers = {"Authorization": f"Bearer {served.key}"}
    codes = [(await served.get(**headers)).code for _ in range(5)]
    assert codes == [200] * 5
    answer = await served.get(**headers)
    assert (answer.code, json.loads(answer.body)) == (429, {"error": "rate_limited"})
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["X-RateLimit-Remaining"] == "0"


async def test_error_answers_keep_the_headers(served: Served) -> None:
    answer = await served.get("/who?refuse=1", Authorization=f"Bearer {served.key}")
    assert answer.code == 404
    assert answer.headers["X-RateLimit-Remaining"] == "4"


async def test_bad_keys_are_slowed_down_by_address(served: Served) -> None:
    answers = [await served.get(Authorization="Bearer nonsense") for _ in range(40)]
    assert answers[-1].code == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert (await served.get(Authorization=f"Bearer {served.key}")).code == 200


async def test_a_private_socket_needs_no_key(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir()
    store = await Store.open(sqlite_url(folder))
    server = HTTPServer(
        Application([("/who", Who)], access=Access(store, rate=0.01, burst=1, anonymous=local_principal()))
    )
    sock, port = bind_unused_port()
    server.add_socket(sock)
    private = Served(served.access, port, "")
    for _ in range(3):
        assert json.loads((await private.get()).body) == {"user": "local"}
    assert (await private.get(Authorization="Bearer nonsense")).code == 401
    server.stop()
    await server.close_all_connections()
    await store.close()


HANDSHAKE = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@pytest.mark.parametrize("missing", sorted(HANDSHAKE))
async def test_a_key_in_the_url_needs_a_whole_handshake(served: Served, missing: str) -> None:
    headers = {name: value for name, value in HANDSHAKE.items() if name != missing}
    answer = await served.get(f"/talk?token={served.key}", **headers)
    assert (answer.code, json.loads(answer.body)) == (401, {"error": "unauthorized"})


async def test_a_handshake_where_no_websocket_is_takes_no_key_from_the_url(served: Served) -> None:
    """A plain GET with an Upgrade header would put keys into logs and histories."""
    for headers in ({"Upgrade": "websocket"}, HANDSHAKE):
        answer = await served.get(f"/who?token={served.key}", **headers)
        assert (answer.code, json.loads(answer.body)) == (401, {"error": "unauthorized"})
