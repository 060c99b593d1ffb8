"""How a gateway starts: the socket first, then everything else, and the first key last."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import POOL, Gateway, make_gateway

COMMAND = [sys.executable, "-m", "llmsafespace_gateway"]


def refused(*options: str, **config: Any) -> str:
    """The one line of a gateway that does not start."""
    done = subprocess.run(
        [*COMMAND, *options], capture_output=True, text=True, timeout=60, env={**os.environ, **config}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def start(data_root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(*options)`: a gateway process, not waited for."""
    made: list[subprocess.Popen[str]] = []

    def begin(*options: str, **more: Any) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
            )
        )
        return made[-1]

    yield begin
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(data_root: Path) -> Path:
    """A data dir that is not there yet."""
    return data_root / f"start-{os.urandom(4).hex()}"


# -- a place that is taken ---------------------------------------------------------------------------------


def test_a_busy_port_is_refused_before_anything_is_touched(folder: Path) -> None:
    """The next start on a free port still shows the first key."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused("--port", str(port), "--data-dir", str(folder))
    assert f"port {port}" in line
    assert "in use" in line
    assert not folder.exists()
    folder.mkdir()
    gateway = make_gateway(folder, warm_pools=[])
    assert gateway.admin_key.startswith("lsp_")
    gateway.stop()


def test_two_starts_at_once_on_one_port(folder: Path, start: Callable[..., Any]) -> None:
    """One serves; the other changes nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ("--port", port, "--GatewayApp.warm_pools=[]")
    processes = {name: start(*options, "--data-dir", str(folder / name)) for name in ("a", "b")}
    deadline = time.monotonic() + 60
    while all(process.poll() is None for process in processes.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (loser,) = (name for name, process in processes.items() if process.poll() is not None)
    assert "in use" in processes[loser].communicate()[1]
    assert not (folder / loser).exists()


@pytest.mark.parametrize("there", ["server", "file", "folder"])
def test_a_socket_s_path_that_is_taken(folder: Path, there: str) -> None:
    folder.mkdir()
    path, data = folder / "socket", folder / "data"
    listening = socket.socket(socket.AF_UNIX)
    if there == "server":
        listening.bind(str(path))
        listening.listen()
    elif there == "file":
        path.write_text("mine")
    line = refused("--socket", str(path if there != "folder" else folder), "--data-dir", str(data))
    assert ("another server listens" if there == "server" else "choose another path") in line
    assert not data.exists()
    if there == "server":
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    listening.close()
    assert there != "file" or path.read_text() == "mine"


def test_a_socket_that_a_dead_server_left(folder: Path, start: Callable[..., Any]) -> None:
    folder.mkdir()
    path = folder / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    process = start("--socket", str(path), "--data-dir", str(folder / "data"), "--GatewayApp.warm_pools=[]")
    line = next(line for line in process.stdout if "serves on" in line)
    assert str(path) in line
    assert path.stat().st_mode & 0o777 == 0o600
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://gateway/healthz").status_code == 200


# -- before it is ready ------------------------------------------------------------------------------------

SLOW_START = """
import asyncio, sys
from llmsafespace_gateway import wiring
from llmsafespace_gateway.app import main

build = wiring.build

async def slowly(app):
    await asyncio.to_thread(sys.stdin.readline)
    return await build(app)

wiring.build = slowly
main(sys.argv[1:])
"""


def _slow(folder: Path) -> tuple[subprocess.Popen[str], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--port", str(port), "--data-dir", str(folder), "--GatewayApp.warm_pools=[]")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_START, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthz")
            return process, url
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_requests_before_it_is_ready_are_asked_to_come_again(folder: Path) -> None:
    process, url = _slow(folder)
    try:
        assert httpx.get(f"{url}/healthz").status_code == 200
        for path in ("/readyz", "/api/v1/sandboxes", "/api/kernels", "/api/v1/openapi.json"):
            for answer in (httpx.get(url + path), httpx.post(url + path, content=bytes(100_000))):
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json()["error"]["code"] == "service_unavailable"
        assert not folder.exists()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert any("serves on" in line for line in process.stdout)
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        process.kill()
        process.communicate()


def test_a_signal_before_it_is_ready_ends_it(folder: Path) -> None:
    """Nothing was made, and no key."""
    process, _ = _slow(folder)
    process.send_signal(signal.SIGTERM)
    out, told = process.communicate(timeout=20)
    assert "lsp_" not in out
    assert "Traceback" not in told, told
    assert process.returncode == 0


def test_a_second_signal_ends_it_at_once(data_root: Path) -> None:
    """While a request runs that would go on for a minute."""
    own = data_root / f"second-{os.urandom(4).hex()}"
    own.mkdir()
    gateway = make_gateway(own, warm_pools=[], drain_timeout=120.0)
    raw = socket.create_connection(("127.0.0.1", gateway.port))
    raw.sendall(b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: g\r\nContent-Length: 100\r\n\r\n")
    time.sleep(0.2)
    os.kill(gateway.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert gateway._process is not None
    assert gateway._process.poll() is None  # it waits for the request
    os.kill(gateway.pid, signal.SIGTERM)
    gateway._process.wait(10)
    raw.close()


# -- descriptors -------------------------------------------------------------------------------------------


def test_the_gateway_takes_what_descriptors_there_are_and_its_sandboxes_do_not(data_root: Path) -> None:
    """1,500 half-open heads on a gateway with 1,024 descriptors, without a key."""
    own = data_root / f"few-{os.urandom(4).hex()}"
    own.mkdir()
    gateway = Gateway(own, warm_pools=[{**POOL, "minSize": 0}])
    gateway.prefix = ("prlimit", "--nofile=256:1024")
    gateway.start()
    crowd: list[socket.socket] = []
    try:
        assert resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)[0] == 1024
        key = gateway.admin_key
        for _ in range(1500):
            client = socket.create_connection(("127.0.0.1", gateway.port))
            crowd.append(client)
            client.sendall(b"GET /api/v1/sandboxes HTTP/1.1\r\nHost: g\r\nX-Slow: ")
        api = httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        with api:
            assert api.get("/readyz").status_code == 200
            made = api.post("/api/v1/sandboxes", json={"runtime": "python"})
            assert made.status_code == 201, made.text
            path = f"/api/v1/sandboxes/{made.json()['id']}"
            code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
            ran = api.post(f"{path}/execute", json={"content": code}).json()
            assert ran["end"] == "ok", ran
            assert int(ran["stdout"]) <= 4096
            assert api.delete(path).status_code == 204
        written = [line for line in gateway.output if '"llmsafespace.serving"' in line]
        assert written
        assert len(written) < 60
        assert not [line for line in gateway.output if '"exception"' in line]
    finally:
        for client in crowd:
            client.close()
        gateway.end_all()


def test_the_log_on_standard_error_is_json(folder: Path, start: Callable[..., Any]) -> None:
    """All of it, and the probes only for those who want to see everything."""
    process = start("--port", "0", "--data-dir", str(folder), "--GatewayApp.warm_pools=[]")
    line = next(line for line in process.stdout if "serves on" in line)
    url = re.search(r"http://\S+", line)
    assert url is not None
    for path in ("/healthz", "/readyz", "/metrics", "/api/v1/sandboxes"):
        httpx.get(url[0] + path)
    process.send_signal(signal.SIGTERM)
    lines = [json.loads(each) for each in process.communicate(timeout=30)[1].splitlines()]
    routes = [each["route"] for each in lines if each["message"] == "request"]
    assert routes == ["/sandboxes"]
    assert any("draining" in each["message"] for each in lines)
