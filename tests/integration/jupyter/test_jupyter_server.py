"""A stock Jupyter server with `--gateway-url`, as JupyterLab uses it: its kernels are sandboxes here."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect


@pytest.fixture
async def server(api: Any, tmp_path: Path) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [f"--ServerApp.port={port}", "--ServerApp.token=local", "--ServerApp.open_browser=False"]
    options += [f"--ServerApp.root_dir={tmp_path}", "--allow-root", "--ServerApp.port_retries=0"]
    options += [f"--gateway-url={api.url}", f"--GatewayClient.auth_token={api.key}"]
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "jupyter_server",
        *options,
        env=os.environ | home | {"KERNEL_USERNAME": "somebody"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(60):
        while True:
            try:
                if (await http.get(f"{url}/api")).status_code == 200:
                    break
            except httpx.TransportError:
                await asyncio.sleep(0.1)
    yield url
    process.terminate()
    await process.wait()


async def test_a_notebook_of_jupyter_server_runs_in_a_sandbox(api: Any, server: str) -> None:
    headers = {"Authorization": "token local"}
    async with httpx.AsyncClient(trust_env=False, headers=headers, base_url=server, timeout=60) as http:
        specs = (await http.get("/api/kernelspecs")).json()
        assert specs["default"] == "python3"
        for path in specs["kernelspecs"]["python3"]["resources"].values():
            assert (await http.get(path)).status_code == 200
        body = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "python3"}}
        made = await http.post("/api/sessions", json=body)
        assert made.status_code == 201, made.text
        kernel = made.json()["kernel"]["id"]
        assert kernel in [each["id"] for each in (await api.request("GET", "/api/kernels")).json()]
        session = uuid.uuid4().hex
        url = f"ws{server.removeprefix('http')}/api/kernels/{kernel}/channels?session_id={session}"
        async with connect(url, additional_headers=headers, proxy=None) as ws:
            header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": session}
            header |= {"username": "", "date": "2026-01-02T03:04:05.000006Z", "version": "5.3"}
            content = {"code": "import os; print(os.environ['KERNEL_USERNAME'], 6 * 7)", "silent": False}
            message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
            await ws.send(json.dumps(message | {"channel": "shell", "buffers": []}))
            text, replied = "", False
            async with asyncio.timeout(60):
                while not (text and replied):
                    got = json.loads(await ws.recv())
                    if got["parent_header"].get("msg_id") != header["msg_id"]:
                        continue
                    text += got["content"].get("text", "")
                    replied = replied or got["header"]["msg_type"] == "execute_reply"
            assert text == "somebody 42\n"
        assert (await http.post(f"/api/kernels/{kernel}/interrupt")).status_code == 204
        assert (await http.post(f"/api/kernels/{kernel}/restart")).status_code == 200
        assert (await http.delete(f"/api/sessions/{made.json()['id']}")).status_code == 204
        assert kernel not in [each["id"] for each in (await api.request("GET", "/api/kernels")).json()]
