"""A stock Jupyter server, in a process of its own, offers and runs a sandbox kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from llmsafespace import Sandbox, messages
from llmsafespace.jupyter.install import install
from tests.conftest import Gateway

V1 = "v1.kernel.websocket.jupyter.org"


@pytest.fixture
def server(gateway: Gateway, tmp_path: Path) -> Iterator[httpx.Client]:
    install(name="sandbox", runtime="python", url=gateway.url, prefix=str(tmp_path))
    environment = {
        **os.environ,
        "LLMSAFESPACE_API_KEY": gateway.admin_key,
        "JUPYTER_PATH": str(tmp_path / "share" / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "HOST_SECRET": "not for sandboxes",
    }
    options = [
        "--port=0",
        "--no-browser",
        "--IdentityProvider.token=t",
        "--allow-root",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter_server", *options], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        yield httpx.Client(base_url=_url(tmp_path / "runtime", process), params={"token": "t"}, timeout=60)
    finally:
        process.terminate()
        process.wait(30)


def _url(runtime: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for path in runtime.glob("jpserver-*.json"):
            try:
                return f"http://127.0.0.1:{json.loads(path.read_text())['port']}"
            except ValueError:
                continue  # it is being written
        time.sleep(0.05)
    raise AssertionError("the Jupyter server did not start")


def execute(connection: ClientConnection, code: str) -> tuple[str, str]:
    """The reply's status, and what was printed."""
    header = messages.header("execute_request", "session")
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    connection.send(messages.build("shell", header, content))
    printed, status, idle = "", "", False
    while True:
        data = connection.recv(timeout=60)
        assert isinstance(data, bytes)
        message = messages.unpack(data)
        if message.parent().msg_id != header["msg_id"]:
            continue
        kind, said = message.header().msg_type, message.content()
        if kind == "stream":
            printed += said["text"]
        elif kind == "execute_reply":
            status = said["status"]
        elif kind == "status":
            idle = said["execution_state"] == "idle"
        if status and idle:  # they come over two sockets, in either order
            return status, printed


def test_a_stock_server(gateway: Gateway, server: httpx.Client) -> None:
    assert "sandbox" in server.get("/api/kernelspecs").json()["kernelspecs"]
    kernel: dict[str, Any] = server.post("/api/kernels", json={"name": "sandbox"}).raise_for_status().json()
    base = str(server.base_url).removeprefix("http").rstrip("/")
    url = f"ws{base}/api/kernels/{kernel['id']}/channels?token=t"
    with connect(url, subprotocols=[Subprotocol(V1)], open_timeout=60, proxy=None) as connection:
        code = "import os, sys; print(sys.executable, os.environ.get('HOST_SECRET')); kept = 1"
        status, printed = execute(connection, code)
        assert status == "ok"
        assert printed.startswith("/opt/runtime/")
        assert printed.endswith(" None\n")
        assert server.post(f"/api/kernels/{kernel['id']}/interrupt").status_code == 204
        assert execute(connection, "kept")[0] == "ok"
    assert server.post(f"/api/kernels/{kernel['id']}/restart").status_code == 200
    with connect(url, subprotocols=[Subprotocol(V1)], open_timeout=60, proxy=None) as connection:
        assert execute(connection, "print('kept' in globals())") == ("ok", "False\n")
    assert server.delete(f"/api/kernels/{kernel['id']}").status_code == 204
    infos = Sandbox.list(state="running", api_url=gateway.url, api_key=gateway.admin_key)
    assert not [info.id for info in infos if info.metadata.get("jupyter")]
