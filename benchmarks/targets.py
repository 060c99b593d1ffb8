"""What is measured: this gateway, Kernel Gateway, and jupyter_client with no gateway at all."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
from jupyter_client.manager import AsyncKernelManager

from benchmarks.websocket_kernel import Outcome, WebsocketKernel


class Kernel(Protocol):
    """A connected kernel of some target."""

    async def execute(self, code: str) -> Outcome: ...
    async def close(self) -> None: ...


class RawKernel:
    """A stock kernel behind jupyter_client's own channels."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    @classmethod
    async def start(cls) -> RawKernel:
        """Start a kernel and wait until it is ready, as `jupyter_client` does by default."""
        manager = AsyncKernelManager(kernel_name="python3")
        await manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kernel = cls(manager, cls._connect(manager))
        await kernel.client.wait_for_ready(timeout=60)
        return kernel

    @staticmethod
    def _connect(manager: Any) -> Any:
        client = manager.client()
        client.start_channels(hb=False)
        return client

    def attach(self) -> RawKernel:
        """A further client of the same kernel."""
        return RawKernel(self.manager, self._connect(self.manager))

    async def execute(self, code: str) -> Outcome:
        """Run `code` and wait for its reply and idle."""
        msg_id = self.client.execute(code, store_history=False, allow_stdin=False)
        outcome = Outcome()

        async def replies() -> None:
            while not outcome.replied:
                self._add(outcome, await self.client.get_shell_msg(timeout=120), msg_id)

        async def outputs() -> None:
            while not outcome.idle:
                self._add(outcome, await self.client.get_iopub_msg(timeout=120), msg_id)

        await asyncio.gather(replies(), outputs())
        return outcome

    @staticmethod
    def _add(outcome: Outcome, message: dict[str, Any], msg_id: str) -> None:
        if message["parent_header"].get("msg_id") == msg_id:
            outcome.add(message["msg_type"], message["content"], 0)

    async def close(self) -> None:
        """Close the channels."""
        self.client.stop_channels()

    async def shutdown(self) -> None:
        """End the kernel."""
        await self.close()
        await self.manager.shutdown_kernel(now=True)


class HttpTarget:
    """A gateway process with the standard Jupyter API."""

    name = "?"
    key = "benchmark"

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.http = httpx.AsyncClient(timeout=30)

    def _spawn(self, command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )
        return self.process

    @property
    def headers(self) -> dict[str, str]:
        """The key, as Jupyter clients send it."""
        return {"Authorization": f"token {self.key}"}

    async def create(self, body: dict[str, Any] | None = None) -> str:
        """`POST /api/kernels`; the kernel's id."""
        answer = await self.http.post(f"{self.url}/api/kernels", json=body or {}, headers=self.headers)
        answer.raise_for_status()
        return str(answer.json()["id"])

    async def connect(self, kernel_id: str, legacy: bool = False) -> WebsocketKernel:
        """The channels of a kernel."""
        url = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels"
        return await WebsocketKernel.open(url, self.key, legacy)

    async def delete(self, kernel_id: str) -> None:
        """End a kernel."""
        await self.http.delete(f"{self.url}/api/kernels/{kernel_id}", headers=self.headers)

    async def restart(self, kernel_id: str) -> None:
        """Restart a kernel."""
        answer = await self.http.post(f"{self.url}/api/kernels/{kernel_id}/restart", headers=self.headers)
        answer.raise_for_status()

    def usage(self) -> psutil.Process:
        """The gateway's process."""
        assert self.process is not None
        return psutil.Process(self.process.pid)

    async def stop(self) -> None:
        """End the gateway."""
        await self.http.aclose()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class KernelGateway(HttpTarget):
    """Jupyter Kernel Gateway as it comes."""

    name = "kernel gateway"

    async def start(self) -> None:
        """Start and wait until it answers."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "kernel_gateway", f"--port={port}", "--ip=127.0.0.1"]
        process = self._spawn([*command, f"--KernelGatewayApp.auth_token={self.key}", "--log-level=ERROR"])
        for _ in range(600):
            try:
                await self.http.get(f"{self.url}/api", headers=self.headers)
                return
            except httpx.HTTPError:
                assert process.poll() is None, "Kernel Gateway ended at its start"
                await asyncio.sleep(0.05)


class ThisGateway(HttpTarget):
    """This project's gateway, with a warm pool of `warm` sandboxes."""

    name = "llmsafespace"

    def __init__(self, data_dir: Path, warm: int = 3) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.warm = warm

    async def start(self) -> None:
        """Start and wait until the pool is full."""
        pool = {"name": "bench", "runtime": "python", "minSize": self.warm, "maxSize": self.warm}
        config = self.data_dir / "config.json"
        settings = {"warm_pools": [pool], "rate_limit": 1e6, "rate_burst": 1_000_000}
        settings["quotas"] = {"sandboxes": 1000, "cpu": 1000, "memory": 2**50}  # type: ignore[assignment]
        config.write_text(json.dumps({"GatewayApp": settings}))
        command = [sys.executable, "-m", "llmsafespace_gateway", "--port", "0"]
        process = self._spawn([*command, "--data-dir", str(self.data_dir), "--config", str(config)])
        assert process.stdout is not None
        loop = asyncio.get_running_loop()
        while not self.url or self.key == "benchmark":
            line = await loop.run_in_executor(None, process.stdout.readline)
            assert line, "the gateway ended at its start"
            if found := re.search(r"serves on (http://\S+)", line):
                self.url = found[1]
            if found := re.search(r"(lsp_\w+)", line):
                self.key = found[1]
        loop.run_in_executor(None, process.stdout.read)
        await self.settled()

    async def settled(self, limit: float = 300.0) -> None:
        """Wait until the warm pool is full again."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            answer = await self.http.get(f"{self.url}/api/v1/warmpools/bench/status", headers=self.headers)
            if answer.status_code == 200 and answer.json()["availablePods"] >= self.warm:
                await asyncio.sleep(0.3)
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("the warm pool did not fill up")

    async def sandbox(self, **body: Any) -> dict[str, Any]:
        """`POST /api/v1/sandboxes`."""
        answer = await self.http.post(
            f"{self.url}/api/v1/sandboxes", json={"runtime": "python", **body}, headers=self.headers
        )
        if answer.status_code >= 400:
            raise RuntimeError(f"no sandbox: {answer.text}")
        return dict(answer.json())

    async def end(self, sandbox_id: str) -> None:
        """End a sandbox."""
        await self.http.delete(f"{self.url}/api/v1/sandboxes/{sandbox_id}", headers=self.headers)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
