"""TLS: the gateway's own certificate for every door, its renewal, and a word where keys go in the clear."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.certificates import self_signed

COMMAND = [sys.executable, "-m", "llmsafespace_gateway", "--port", "0"]


class Served:
    """A gateway process and what it has said."""

    def __init__(self, *options: str) -> None:
        command = [*COMMAND, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line.startswith("Try it"):
                break
        self.said = "".join(said)
        found = re.search(r"serves on (\S+)", self.said)
        assert found, self.said
        self.url = found[1]
        self.port = int(self.url.rpartition(":")[2])
        key = re.search(r"lsp_\w+", self.said)
        self.key = key[0] if key else ""
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def serve(data_root: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(*options: str, **settings: Any) -> Served:
        folder = data_root / f"tls-{os.urandom(4).hex()}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"GatewayApp": {"warm_pools": [], **settings}}))
        more = ("--data-dir", str(folder / "data"), "--config", str(folder / "config.json"))
        made.append(Served(*more, *options))
        return made[-1]

    yield start
    for each in made:
        each.stop()


class Pair:
    """A certificate and key in files, and what trusts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.renew()

    @property
    def options(self) -> tuple[str, ...]:
        return ("--certfile", str(self.folder / "cert.pem"), "--keyfile", str(self.folder / "key.pem"))

    def renew(self) -> None:
        self.cert, self.key = self_signed(["localhost"])
        (self.folder / "cert.pem").write_text(self.cert)
        (self.folder / "key.pem").write_text(self.key)
        self.trust = ssl.create_default_context(cadata=self.cert)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def test_every_door_is_served_over_tls(serve: Callable[..., Served], pair: Pair) -> None:
    served = serve(*pair.options)
    assert served.url == f"https://127.0.0.1:{served.port}"
    assert "plain HTTP" not in served.said
    base = f"https://localhost:{served.port}"
    headers = {"Authorization": f"Bearer {served.key}"}
    async with httpx.AsyncClient(base_url=base, verify=pair.trust, headers=headers, timeout=120) as api:
        made = await api.post("/api/v1/sandboxes", json={"runtime": "bash"})
        assert made.status_code == 201, made.text
        path = f"/api/v1/sandboxes/{made.json()['id']}"
        sent = os.urandom(3_000_000)
        assert (await api.put(f"{path}/files/big", content=sent)).status_code == 200
        assert (await api.get(f"{path}/files/big")).content == sent
        url = f"wss://localhost:{served.port}{path}/stream"
        async with connect(url, additional_headers=headers, ssl=pair.trust, proxy=None) as stream:
            await stream.send(json.dumps({"type": "execute", "content": "echo hello"}))
            while "hello" not in await stream.recv():
                pass
        assert (await api.delete(path)).status_code == 204
        assert served.stop() == 0  # with a connection that is idle


def test_plain_http_is_not_answered_and_harms_nobody(serve: Callable[..., Served], pair: Pair) -> None:
    served = serve(*pair.options)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP/1.1 200" not in plain.recv(4096)
    with socket.create_connection(("127.0.0.1", served.port)) as silent:  # a handshake that never begins
        answer = httpx.get(f"https://localhost:{served.port}/healthz", verify=pair.trust)
        assert answer.status_code == 200
        silent.close()


def test_a_renewed_certificate_is_taken_without_a_restart(serve: Callable[..., Served], pair: Pair) -> None:
    served = serve(*pair.options)
    url = f"https://localhost:{served.port}/healthz"
    assert httpx.get(url, verify=pair.trust).status_code == 200
    (pair.folder / "cert.pem").write_text("half written")
    time.sleep(2.5)  # two looks at the files
    assert httpx.get(url, verify=pair.trust).status_code == 200
    pair.renew()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert httpx.get(url, verify=pair.trust).status_code == 200
            return
        except httpx.ConnectError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pair: (pair.folder / "key.pem").unlink(), "--keyfile .*No such file"),
        (lambda pair: (pair.folder / "cert.pem").unlink(), "--certfile .*No such file"),
        (lambda pair: (pair.folder / "key.pem").write_text(self_signed(["x"])[1]), "does not belong"),
        (lambda pair: (pair.folder / "cert.pem").write_text("rubbish"), "in PEM"),
    ],
    ids=["no key", "no certificate", "another key", "rubbish"],
)
def test_what_cannot_be_used_is_one_line(
    change: Callable[[Pair], object], words: str, pair: Pair, tmp_path: Path
) -> None:
    change(pair)
    command = [*COMMAND, "--data-dir", str(tmp_path / "data"), *pair.options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.search(words, line)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--ip", "0.0.0.0"), True),
        (("--ip", "0.0.0.0", "--trusted-proxies", "10.0.0.0/8"), False),
        (("--ip", "127.0.0.1"), False),
    ],
    ids=["all addresses", "behind a proxy", "loopback"],
)
def test_keys_in_the_clear_are_warned_of(
    options: tuple[str, ...], warned: bool, serve: Callable[..., Served]
) -> None:
    served = serve(*options)
    assert ("plain HTTP" in served.said) == warned
    assert httpx.get(f"{served.url}/healthz").status_code == 200  # what is printed can be opened


def test_an_ipv6_url_can_be_opened(serve: Callable[..., Served]) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    served = serve("--ip", "::1")
    assert served.url.startswith("http://[::1]:")
    assert httpx.get(f"{served.url}/healthz").status_code == 200
