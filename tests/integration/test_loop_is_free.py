"""No request holds the event loop for long: in processor time of its thread, by the gateway itself."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Gateway, make_gateway
from tests.integration.rest_support import Client

LIMIT = 0.01  # seconds; several callbacks of one turn count together, on two cores that share a cache


class Bystander:
    """Another client, which asks `/healthz` again and again as long as the block runs."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as plain:
            while not self._stop.is_set():
                plain.get("/healthz").raise_for_status()
                self.answered += 1
                self._stop.wait(0.005)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def watched(data_root: Path) -> Iterator[Gateway]:
    """A gateway that tells who holds its loop."""
    own = data_root / "watched"
    own.mkdir()
    gateway = make_gateway(own, slow_callback=LIMIT)
    yield gateway
    gateway.end_all()


@pytest.fixture
def client(watched: Gateway) -> Iterator[Client]:
    """A client; when the test is over, nothing may have held the loop meanwhile."""
    before = len(watched.output)
    with Client(watched.url, watched.admin_key) as made:
        yield made
        made.get("/user")  # what was held is written down by then
    told = [json.loads(line) for line in watched.output[before:] if "event loop was held" in line]
    assert not told, "\n".join(f"{each['milliseconds']} ms: {each['where']}" for each in told)


def test_the_watch_sees_what_it_should(data_root: Path, watched: Gateway) -> None:
    """A list that is made on the loop, as it once was, is seen."""
    script = "\n".join(
        (
            "import asyncio, logging",
            "from llmsafespace_gateway.loop_watch import LoopWatch",
            "async def main():",
            "    watch = LoopWatch(0.02)",
            "    await asyncio.sleep(0.1)",
            "    print(len(str([number ** 7 for number in range(150_000)])) > 0)",
            "    await asyncio.sleep(0.1)",
            "logging.basicConfig()",
            "asyncio.run(main())",
        )
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("the event loop was held") == 1, done.stderr


def test_time_zones(client: Client) -> None:
    for zone in ("Europe/Paris", "Mars/Olympus"):
        made = client.post("/sandboxes", json={"runtime": "python", "timezone": zone})
        if made.status_code == 201:
            client.delete(f"/sandboxes/{made.json()['id']}")
    assert made.status_code == 400


def test_documents(client: Client, watched: Gateway) -> None:
    for path in ("/openapi.json", "/docs", "/docs/script.js", "/docs/style.css", "/runtimes", "/system"):
        client.get(path)
    with httpx.Client(base_url=watched.url) as plain:
        for path in ("/metrics", "/readyz", "/healthz", "/api/kernelspecs"):
            plain.get(path, headers={"Authorization": f"Bearer {watched.admin_key}"})


def test_a_long_list_of_files(client: Client, watched: Gateway) -> None:
    with client.sandbox() as sandbox:
        code = "import os\nos.makedirs('many')\nfor n in range(50_000): open(f'many/a-file-{n}', 'w').close()"
        assert client.execute(sandbox, code)["end"] == "ok"
        with Bystander(watched.url) as bystander:
            answer = client.get(f"/sandboxes/{sandbox}/files", params={"path": "many", "limit": 50_000})
        assert bystander.answered > 1
        assert answer.status_code == 200, answer.text[:500]
        items = answer.json()["items"]
        assert len(items) == 50_000
        assert len({each["path"] for each in items}) == 50_000


def test_many_displays(client: Client) -> None:
    with client.sandbox() as sandbox:
        code = "from IPython.display import display\nfor n in range(5_000): display(n)"
        results = client.execute(sandbox, code, timeout=120)["results"]
        assert [each["data"]["text/plain"] for each in results] == [str(n) for n in range(5_000)]


@pytest.mark.timeout(1200)
def test_very_many_displays(client: Client, watched: Gateway) -> None:
    """200,000 of them in one answer, while somebody else is answered."""
    code = (
        "publish = get_ipython().display_pub.publish\n"
        "for n in range(200_000): publish({'text/plain': str(n)})"
    )
    client.timeout = 1200
    with client.sandbox() as sandbox, Bystander(watched.url) as bystander:
        answer = client.execute(sandbox, code, timeout=1000)
        assert (answer["end"], answer["missed"], answer["truncated"]) == ("ok", 0, False)
        assert [each["data"]["text/plain"] for each in answer["results"]] == [str(n) for n in range(200_000)]
    assert bystander.answered > 100


def test_many_updates_of_many_displays(client: Client) -> None:
    """Each update finds its display without looking at all of them."""
    with client.sandbox() as sandbox:
        code = (
            "from IPython.display import display, update_display\n"
            "for n in range(2_000): display(n, display_id=str(n))\n"
            "for n in range(2_000): update_display(-n, display_id=str(n))"
        )
        results = client.execute(sandbox, code, timeout=120)["results"]
        assert [each["data"]["text/plain"] for each in results] == [str(-n) for n in range(2_000)]


def test_large_bodies_and_outputs(client: Client) -> None:
    content = os.urandom(12_000_000)
    files = {"large": {"content": base64.b64encode(content).decode(), "encoding": "base64"}}
    made = client.post(
        "/sandboxes", json={"runtime": "python", "files": files}, headers={"Idempotency-Key": "large"}
    )
    assert made.status_code == 201, made.text[:500]
    sandbox = made.json()["id"]
    again = client.post(
        "/sandboxes", json={"runtime": "python", "files": files}, headers={"Idempotency-Key": "large"}
    )
    assert again.json()["id"] == sandbox
    assert client.get(f"/sandboxes/{sandbox}/files/large").content == content
    code = "for _ in range(60): print('y' * 99_999)"
    assert len(client.execute(sandbox, code, timeout=120)["stdout"]) == 6_000_000
    client.delete(f"/sandboxes/{sandbox}")
