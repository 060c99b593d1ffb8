"""The websocket …/stream: many executions over one connection, authorized message by message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.integration.rest_support import Client

LIMIT = 60


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-stream")) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(client: Client) -> Iterator[str]:
    with client.sandbox() as made:
        yield made


@contextmanager
def stream(client: Client, sandbox: str) -> Iterator[ClientConnection]:
    url = str(client.base_url).replace("http", "ws", 1) + f"sandboxes/{sandbox}/stream"
    headers = {"Authorization": client.headers["authorization"]} if "authorization" in client.headers else {}
    with connect(url, additional_headers=headers, max_size=None, open_timeout=LIMIT) as made:
        yield made


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def until(socket: ClientConnection, *types: str) -> list[dict[str, Any]]:
    """All messages up to the first of these types."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] not in types:
        found.append(json.loads(socket.recv(timeout=LIMIT)))
    return found


def of(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


def test_many_executions_over_one_connection(client: Client, sandbox: str) -> None:
    with stream(client, sandbox) as socket:
        for number in range(3):
            code = f"print('{number}\\n', end='')"
            send(socket, type="execute", executionId=f"many-{number}", mode="code", content=code)
            messages = until(socket, "execution_complete")
            assert of(messages, "execution_start")[0]["executionId"] == f"many-{number}"
            outputs = of(messages, "output")
            assert [(out["stream"], out["content"]) for out in outputs] == [("stdout", f"{number}\n")]
            assert (messages[-1]["exitCode"], messages[-1]["end"]) == (0, "ok")
        code = "from IPython.display import HTML, display; display(HTML('<b>'))\n1/0"
        send(socket, type="execute", content=code)
        messages = until(socket, "execution_complete")
        assert of(messages, "display")[0]["data"]["text/html"] == "<b>"
        assert messages[-1]["exitCode"] == 1
        assert messages[-1]["error"]["name"] == "ZeroDivisionError"
        send(socket, type="execute", mode="command", content="echo err >&2; exit 4")
        messages = until(socket, "execution_complete")
        assert of(messages, "output")[0]["stream"] == "stderr"
        assert messages[-1]["exitCode"] == 4


def test_ping_status_and_cancel(client: Client, sandbox: str) -> None:
    with stream(client, sandbox) as socket:
        status = of(until(socket, "status_update"), "status_update")[0]
        assert status["resources"]["limits"]["memory"]
        send(socket, type="ping", timestamp=12.5)
        assert until(socket, "pong")[-1]["timestamp"] == 12.5
        code = "import time\nprint('up', flush=True)\ntime.sleep(120)"
        send(socket, type="execute", executionId="to-cancel", content=code)
        until(socket, "output")
        send(socket, type="ping")
        until(socket, "pong")
        send(socket, type="cancel", executionId="to-cancel")
        messages = until(socket, "execution_complete")
        assert messages[-1]["end"] == "interrupted"


def test_two_at_once(client: Client, sandbox: str) -> None:
    with stream(client, sandbox) as socket:
        send(socket, type="execute", executionId="both-1", content="import time; time.sleep(0.2); print(1)")
        send(socket, type="execute", executionId="both-2", mode="command", content="echo 2")
        messages = until(socket, "execution_complete") + until(socket, "execution_complete")
        contents = {out["executionId"]: out["content"] for out in of(messages, "output")}
        assert contents == {"both-1": "1\n", "both-2": "2\n"}


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "null",
        '{"type": "nonsense"}',
        '{"type": "execute"}',
        '{"type": "execute", "content": 1}',
        '{"type": "execute", "content": "1", "mode": "sql"}',
        '{"type": "execute", "content": "1", "executionId": "../../x"}',
        '{"type": "execute", "content": "1", "context": "unknown"}',
        '{"type": "execute", "content": "1", "language": "cobol"}',
        '{"type": "execute", "content": "1", "timeout": -1}',
        '{"type": "cancel"}',
        '{"type": "cancel", "executionId": "unknown"}',
        "[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_bad_messages_are_answered_and_the_connection_stays(
    client: Client, sandbox: str, message: str | bytes
) -> None:
    with stream(client, sandbox) as socket:
        socket.send(message)
        error = until(socket, "error")[-1]
        assert error["code"] in ("invalid_request", "not_found")
        assert error["message"]
        send(socket, type="execute", content="print(1)")
        assert until(socket, "execution_complete")[-1]["end"] == "ok"


@pytest.mark.parametrize(
    "wrong",
    [{"content": 1}, {"env": {"A": 1}}, {"mode": "sql"}, {"timeout": "5"}, {"context": "none"}],
    ids=str,
)
def test_a_refusal_names_the_execution_that_it_is_about(
    client: Client, sandbox: str, wrong: dict[str, Any]
) -> None:
    """Also where the message cannot be read as a whole: its sender waits for this very one."""
    with stream(client, sandbox) as socket:
        send(socket, **{"type": "execute", "executionId": "wrong", "content": "1", **wrong})
        assert until(socket, "error")[-1]["executionId"] == "wrong"


def test_a_message_that_is_too_long_closes(client: Client, sandbox: str) -> None:
    with stream(client, sandbox) as socket:
        with pytest.raises(ConnectionClosed):  # noqa: PT012
            socket.send("x" * (17 * 1024 * 1024))
            until(socket, "never")
        assert socket.close_code in (1009, 1006)


def test_who_may_connect(gateway: Any, client: Client, sandbox: str) -> None:
    stranger = Client(gateway.url, gateway.key("rest-stream-stranger", "admin", "rest-stream-elsewhere"))
    reader = client.post("/user/apikeys", json={"scopes": ["files:read"]}).json()["key"]
    revoked = client.post("/user/apikeys", json={}).json()
    client.delete(f"/user/apikeys/{revoked['id']}")
    for who, status in (
        (Client(gateway.url, None), 401),
        (Client(gateway.url, "lsp_bad_key"), 401),
        (Client(gateway.url, revoked["key"]), 401),
        (Client(gateway.url, reader), 403),
        (stranger, 404),
    ):
        with pytest.raises(InvalidStatus) as caught, stream(who, sandbox):
            pass
        assert caught.value.response.status_code == status
        assert "error" in json.loads(caught.value.response.body)
        who.close()
    plain = client.get(f"/sandboxes/{sandbox}/stream")
    assert plain.json()["error"]["code"] == "invalid_request"


def test_messages_need_their_scope(gateway: Any, client: Client, sandbox: str) -> None:
    key = client.post("/user/apikeys", json={"scopes": ["sandboxes:read"]}).json()["key"]
    with Client(gateway.url, key) as watcher, stream(watcher, sandbox) as socket:
        send(socket, type="execute", executionId="no", content="1")
        assert until(socket, "error")[-1]["code"] == "forbidden"
        send(socket, type="cancel", executionId="no")
        assert until(socket, "error")[-1]["code"] == "forbidden"
        send(socket, type="ping")
        until(socket, "pong")


def test_a_revoked_key_closes_the_connection(gateway: Any, client: Client, sandbox: str) -> None:
    made = client.post("/user/apikeys", json={}).json()
    with Client(gateway.url, made["key"]) as second, stream(second, sandbox) as socket:
        send(socket, type="ping")
        until(socket, "pong")
        client.delete(f"/user/apikeys/{made['id']}")
        with pytest.raises(ConnectionClosed):
            until(socket, "never")
        assert socket.close_code == 4401


def test_an_ended_sandbox_closes_the_connection(client: Client) -> None:
    with client.sandbox() as doomed, stream(client, doomed) as socket:
        code = "print('up', flush=True)\nimport time; time.sleep(60)"
        send(socket, type="execute", executionId="doomed", content=code)
        until(socket, "output")
        client.delete(f"/sandboxes/{doomed}")
        assert until(socket, "execution_complete")[-1]["end"] in ("aborted", "kernel_died")
        with pytest.raises(ConnectionClosed):
            until(socket, "never")
        assert socket.close_code == 4410
        with pytest.raises(InvalidStatus) as caught, stream(client, doomed):
            pass
        assert caught.value.response.status_code == 410
