"""Much output through every door: complete or counted, never forged, and without the gateway's memory."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from tests.integration.rest_support import Client

MIB = 1024 * 1024
GATEWAY_MAY_GROW = 64_000_000
PRINT = "for i in range({n} * 8): print('x' * 131071)"
WIDE = "for i in range({n} * 8): print('\\U0001f600' * 32767 + '\\0')"
DISPLAY = "for i in range({n}): display({{'text/plain': 'd' * 1048576}}, raw=True)"


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.key("rest-output")) as made:
        yield made


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Peak:
    """The most memory that a process has while this is open, in bytes above its beginning."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = self.most = rss(pid)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.01):
            self.most = max(self.most, rss(self._pid))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before


def lines(client: Client, sandbox: str, code: str, accept: str) -> Iterator[dict[str, Any]]:
    body = {"content": code}
    with client.stream(
        "POST", f"/sandboxes/{sandbox}/execute", json=body, headers={"Accept": accept}
    ) as answer:
        assert answer.status_code == 200
        rest = b""
        for piece in answer.iter_bytes():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                if accept == "text/event-stream":
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])
                else:
                    yield json.loads(line)


def count(events: Iterator[dict[str, Any]]) -> tuple[int, int, int, str]:
    """Bytes of output, messages, messages missed, and the end."""
    size = messages = missed = 0
    for event in events:
        messages += event["type"] not in ("gap", "end")
        size += len(event.get("text", ""))
        size += len((event.get("data") or {}).get("text/plain", ""))
        missed += event.get("missed", 0)
        if event["type"] == "end":
            return size, messages, missed, event["end"]
    raise AssertionError("no end")


# -- readers that have stopped ----------------------------------------------------------------------------


def raw_post(client: Client, path: str, accept: str, code: str) -> socket.socket:
    """A connection whose answer nobody reads."""
    url = urlsplit(str(client.base_url))
    body = json.dumps({"content": code}).encode()
    head = (
        f"POST {url.path}{path} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: {accept}\r\n"
        f"Authorization: {client.headers['authorization']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    made = socket.create_connection((url.hostname, url.port))
    made.sendall(head.encode() + body)
    return made


DOORS = ("application/x-ndjson", "text/event-stream", "application/json", "stream")
CODES = {"text": PRINT, "displays": DISPLAY, "no ascii": WIDE}
USUAL = ("text", "displays")  # at the first door; the others take minutes


@pytest.mark.parametrize(
    ("door", "code"),
    [
        pytest.param(
            *(door, code),
            id=f"{door}-{name}",
            marks=() if door == DOORS[0] and name in USUAL else pytest.mark.heavy,
        )
        for door in DOORS
        for name, code in CODES.items()
    ],
)
def test_a_reader_that_has_stopped_costs_the_gateway_little(
    client: Client, gateway: Any, door: str, code: str
) -> None:
    with client.sandbox() as sandbox, contextlib.ExitStack() as stack:
        client.execute(sandbox, "print('warm')")
        stack.enter_context(peak := Peak(gateway.pid))
        if door == "stream":
            websocket = stack.enter_context(stream(client, sandbox, max_queue=1))
            message = {
                "type": "execute",
                "mode": "code",
                "executionId": "stalled",
                "content": code.format(n=400),
            }
            websocket.send(json.dumps(message))
        else:
            made = raw_post(client, f"sandboxes/{sandbox}/execute", door, code.format(n=400))
            stack.callback(made.close)
        until_ended(client, sandbox)
        time.sleep(0.5)
        print(door, round(peak.growth / 1e6), "MB")
        assert peak.growth < GATEWAY_MAY_GROW


def until_ended(client: Client, sandbox: str) -> None:
    wait_for(
        lambda: len(executions := list_executions(client, sandbox)) > 1 and all(e["end"] for e in executions)
    )


def list_executions(client: Client, sandbox: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get(f"/sandboxes/{sandbox}/executions").json()["items"]
    return items


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# -- what is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_300_mb_through_a_sandbox_of_256_mib(client: Client, accept: str) -> None:
    """IPython's copy of all that was printed, or one queue without a bound, would be the end of this one."""
    with client.sandbox(resources={"memory": "256Mi"}) as sandbox:
        size, _, missed, end = count(lines(client, sandbox, PRINT.format(n=300), accept))
        assert end == "ok"
        assert size == 300 * MIB or missed > 0
        assert client.execute(sandbox, "1 + 1")["results"][0]["data"]["text/plain"] == "2"


@pytest.mark.heavy
@pytest.mark.parametrize("reader", ["fast", "slow", "stopped"])
def test_2_gb_through_a_default_sandbox(client: Client, reader: str) -> None:
    with client.sandbox() as sandbox:
        events = lines(client, sandbox, PRINT.format(n=2048), "application/x-ndjson")
        size = messages = missed = 0
        for event in events:
            size += len(event.get("text", ""))
            messages += event["type"] not in ("gap", "end")
            missed += event.get("missed", 0)
            if reader == "slow" and messages < 2000:
                time.sleep(0.01)
            if reader == "stopped" and messages == 1:
                time.sleep(120)
        assert event["end"] == "ok"
        assert size == 2048 * MIB or missed > 0
        assert messages + missed >= 2048 * MIB // (160 * 1024)


def test_a_string_of_70_mb_is_cut_truthfully(client: Client) -> None:
    with client.sandbox() as sandbox:
        code = "print('before'); print('y' * 70_000_000); print('after')"
        answer = client.execute(sandbox, code)
        assert answer["end"] == "ok"
        assert answer["stdout"].startswith("before\nyyy")
        assert answer["truncated"] or answer["missed"]
        whole = "".join(
            event.get("text", "") for event in lines(client, sandbox, code, "application/x-ndjson")
        )
        assert whole == "before\n" + "y" * 70_000_000 + "\nafter\n"
        small = client.execute(sandbox, "print('before'); print('after')")
        assert (small["truncated"], small["missed"]) == (False, 0)


def test_a_display_too_large_says_so_at_every_door(client: Client) -> None:
    code = "print('before')\ndisplay({'text/html': 'h' * 70_000_000}, raw=True)\nprint('after')"
    with client.sandbox() as sandbox:
        answer = client.execute(sandbox, code)
        assert (answer["end"], answer["stdout"]) == ("ok", "before\nafter\n")
        assert answer["missed"] == 1
        assert answer["error"]["name"] == "MessageTooLarge"
        for accept in ("application/x-ndjson", "text/event-stream"):
            events = list(lines(client, sandbox, code, accept))
            assert [event["missed"] for event in events if event["type"] == "gap"] == [1]
            assert [event["name"] for event in events if event["type"] == "error"] == ["MessageTooLarge"]
        with stream(client, sandbox) as websocket:
            websocket.send(json.dumps({"type": "execute", "mode": "code", "content": code}))
            while (message := json.loads(websocket.recv(timeout=60)))["type"] != "execution_complete":
                pass
            assert message["missed"] == 1
            assert message["error"]["name"] == "MessageTooLarge"


@contextlib.contextmanager
def stream(client: Client, sandbox: str, **options: Any) -> Iterator[Any]:
    url = str(client.base_url).replace("http", "ws", 1) + f"sandboxes/{sandbox}/stream"
    headers = {"Authorization": client.headers["authorization"]}
    with connect(url, additional_headers=headers, max_size=None, open_timeout=60, **options) as made:
        yield made


LINES = r"""
import json
kernel = get_ipython().kernel
END = json.dumps({"type": "end", "seq": 1, "end": "timeout", "executionId": "x", "exitCode": 1, "missed": 9})
for end in ("\n", "\r", "\r\n"):
    raw = '{"data": {"text/plain": [1,' + end + END + end + ',2]}, "metadata": {}, "transient": {}}'
    message = kernel.session.msg("display_data", {}, parent=get_ipython().get_parent())
    parts = kernel.session.serialize(message)
    parts[-1] = raw.encode()
    kernel.iopub_thread.send_multipart([b"display_data", *parts])
    print(end + END + end)
for character in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
    print(character + END + character)
    print(character + "data: " + END + character + character)
"""


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_a_kernel_cannot_write_events_of_its_own(client: Client, accept: str) -> None:
    with client.sandbox() as sandbox:
        body = {"content": LINES}
        answer = client.post(f"/sandboxes/{sandbox}/execute", json=body, headers={"Accept": accept})
        for found in (answer.text.splitlines(), answer.text.split("\n"), list(answer.iter_lines())):
            data = [
                line.removeprefix("data: ") for line in found if accept[-6:] == "ndjson" or "data: " in line
            ]
            ends = [event for event in map(json.loads, filter(None, data)) if event["type"] == "end"]
            assert [event["end"] for event in ends] == ["ok"]
