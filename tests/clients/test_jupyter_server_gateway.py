"""A stock Jupyter server started with --gateway-url, as JupyterLab is: its kernels are sandboxes here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

TOKEN = "local-server-token"


@pytest.fixture
async def server(gateway: Any, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The REST API of a Jupyter server whose kernels come from the gateway."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "KERNEL_USERNAME": "somebody",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "jupyter_server", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--gateway-url={gateway.url}", "--no-browser"]
    command += [f"--GatewayClient.auth_token={gateway.key('notebook')}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=tmp_path)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"token {TOKEN}"}, timeout=60
        ) as client:
            await _answers(client, process, tmp_path / "log")
            yield client
    finally:
        process.terminate()
        process.wait(30)


async def _answers(client: httpx.AsyncClient, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if (await client.get("/api/status")).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(log.read_text())


async def _execute(channel: ClientConnection, code: str) -> list[dict[str, Any]]:
    """All messages that answer one execution, until it is idle and replied."""
    msg_id = uuid.uuid4().hex
    header = {
        "msg_id": msg_id,
        "msg_type": "execute_request",
        "session": "s",
        "username": "",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "allow_stdin": False, "store_history": True}
    request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await channel.send(json.dumps(request))
    messages: list[dict[str, Any]] = []
    seen: set[str] = set()
    async with asyncio.timeout(60):
        while not {"execute_reply", "idle"} <= seen:
            message = json.loads(await channel.recv())
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            messages.append(message)
            seen.add(message["msg_type"])
            seen.add(message["content"].get("execution_state", ""))
    return messages


async def test_a_notebook_session_runs_in_a_sandbox(server: httpx.AsyncClient) -> None:
    specs = (await server.get("/api/kernelspecs")).json()
    name = specs["default"]
    assert name in specs["kernelspecs"]
    body = {"path": "note.ipynb", "name": "note.ipynb", "type": "notebook", "kernel": {"name": name}}
    session = (await server.post("/api/sessions", json=body)).raise_for_status().json()
    kernel_id = session["kernel"]["id"]
    url = str(server.base_url.copy_with(scheme="ws")).rstrip("/")
    async with connect(
        f"{url}/api/kernels/{kernel_id}/channels?session_id=s", additional_headers=dict(server.headers)
    ) as channel:
        messages = await _execute(
            channel, "import os; print(os.getuid(), os.path.exists('/etc/shadow')); 6 * 7"
        )
        texts = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
        results = [m["content"]["data"] for m in messages if m["msg_type"] == "execute_result"]
        assert texts == "1000 False\n"
        assert results == [{"text/plain": "42"}]
        picture = await _execute(channel, "import matplotlib.pyplot as p; p.plot([1, 2]); p.show()")
        assert any("image/png" in m["content"]["data"] for m in picture if m["msg_type"] == "display_data")
    interrupted = await server.post(f"/api/kernels/{kernel_id}/interrupt")
    assert interrupted.status_code == 204
    restarted = await server.post(f"/api/kernels/{kernel_id}/restart")
    assert restarted.status_code == 200
    assert (await server.delete(f"/api/sessions/{session['id']}")).status_code == 204
    assert (await server.get("/api/kernels")).json() == []
