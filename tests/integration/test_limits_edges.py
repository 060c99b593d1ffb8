"""Limits that are told are in force: up to them a request is served, beyond it is refused with the limit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from llmsafespace import InvalidRequest, Sandbox
from llmsafespace_protocol.limits import MAX_ARGUMENT
from tests.integration.rest_support import Client
from tests.integration.test_rest_stream import of, send, stream, until

MAX_CODE = 8 * 1024 * 1024  # characters
TOLD = 262_144  # bytes; what opens a stream to an agent comes in two frames beyond


@pytest.fixture(scope="module")
def key(gateway: Any) -> str:
    return str(gateway.key("limits"))


@pytest.fixture(scope="module")
def client(gateway: Any, key: str) -> Iterator[Client]:
    with Client(gateway.url, key) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(client: Client) -> Iterator[str]:
    with client.sandbox() as made:
        yield made


def code_of(size: int) -> str:
    """Code of so many characters that prints how long its text is."""
    start, end = "text = '", "'\nprint(len(text), end='')"
    return start + "x" * (size - len(start) - len(end)) + end


Door = Callable[[Client, str, str], str]


def _rest(client: Client, sandbox: str, code: str) -> str:
    answer = client.post(f"sandboxes/{sandbox}/execute", json={"type": "code", "content": code})
    if answer.status_code == 400:
        raise ValueError(answer.json()["error"]["message"])
    return str(answer.raise_for_status().json()["stdout"])


def _rest_stream(client: Client, sandbox: str, code: str) -> str:
    accept = {"Accept": "application/x-ndjson"}
    body = {"type": "code", "content": code}
    with client.stream("POST", f"sandboxes/{sandbox}/execute", json=body, headers=accept) as answer:
        if answer.status_code == 400:
            raise ValueError(json.loads(answer.read())["error"]["message"])
        events = [json.loads(line) for line in answer.iter_lines() if line]
    return "".join(event["text"] for event in events if event["type"] == "stdout")


def _socket(client: Client, sandbox: str, code: str) -> str:
    with stream(client, sandbox) as socket:
        send(socket, type="execute", content=code)
        messages = until(socket, "execution_complete", "error")
        if messages[-1]["type"] == "error":
            raise ValueError(messages[-1]["message"])
        return "".join(each["content"] for each in of(messages, "output"))


def _sdk(client: Client, sandbox: str, code: str) -> str:
    address = str(client.base_url).partition("/api/")[0]
    token = client.headers["authorization"].partition(" ")[2]
    attached = Sandbox.connect(sandbox, api_url=address, api_key=token)
    try:
        return attached.run_code(code).stdout
    except InvalidRequest as error:
        raise ValueError(error.message) from error
    finally:
        attached.close()


DOORS: dict[str, Door] = {"rest": _rest, "rest stream": _rest_stream, "stream": _socket, "sdk": _sdk}


@pytest.mark.parametrize("size", [TOLD - 1000, TOLD + 1000, MAX_CODE])
@pytest.mark.parametrize("door", DOORS)
def test_code_up_to_the_limit_runs(client: Client, sandbox: str, door: str, size: int) -> None:
    code = code_of(size)
    assert len(code) == size
    assert DOORS[door](client, sandbox, code) == str(code.count("x") - 2)


@pytest.mark.parametrize("door", ["rest", "rest stream", "stream"])
def test_code_beyond_the_limit_is_refused(client: Client, sandbox: str, door: str) -> None:
    with pytest.raises(ValueError, match=str(MAX_CODE)):
        DOORS[door](client, sandbox, code_of(MAX_CODE + 1))


def test_the_environment_of_an_execution(client: Client, sandbox: str) -> None:
    env = {f"V{number}": "x" * 131_000 for number in range(8)}
    body = {"type": "code", "content": "import os; print(len(os.environ['V7']), end='')", "env": env}
    assert client.post(f"sandboxes/{sandbox}/execute", json=body).json()["stdout"] == "131000"


@pytest.mark.parametrize("kind", ["command", "argv", "execute"])
def test_a_line_for_the_shell(client: Client, sandbox: str, kind: str) -> None:
    def answer(size: int) -> httpx.Response:
        line = "true " + "x" * (size - 5)
        if kind == "execute":
            return client.post(f"sandboxes/{sandbox}/execute", json={"type": "command", "content": line})
        body: dict[str, Any] = {"command": line} if kind == "command" else {"argv": ["true", "x" * size]}
        return client.post(f"sandboxes/{sandbox}/commands", json=body)

    served = answer(MAX_ARGUMENT)
    assert (served.status_code, served.json()["exitCode"]) in ((200, 0), (201, 0))
    refused = answer(MAX_ARGUMENT + 1)
    assert refused.status_code == 400
    assert str(MAX_ARGUMENT) in refused.json()["error"]["message"]
