"""What is measured: this gateway, and jupyter_client with no gateway at all; peers.py has the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
from jupyter_client.manager import AsyncKernelManager

from benchmarks.websocket_kernel import Outcome, WebsocketKernel
from llmsafespace_gateway.backends.local.keeper.processes import start_time

GONE = 30.0  # seconds in which a process must have gone that was killed


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
        self.missing: str | None = None  # why it is not measured
        self._mark = f"LLMSAFESPACE_BENCH_{uuid.uuid4().hex}"  # in the environment of all that it starts

    def _spawn(
        self, command: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, **(env or {}), self._mark: "1"},
        )
        return self.process

    async def start(self) -> None:
        """Start and wait until it answers; after `end_hard` again."""
        raise NotImplementedError

    async def settled(self) -> None:
        """Wait until nothing of an earlier measurement goes on."""

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

    async def end_hard(self) -> None:
        """End the gateway and all that it has started, whatever state they are in, also if it died before.

        Raises TimeoutError or subprocess.TimeoutExpired when something does not go.
        """
        if self.process is None:
            return
        self.process.kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._mark in process.environ():
                    process.kill()
        await asyncio.to_thread(self.process.wait, GONE)
        self.process = None

    async def stop(self) -> None:
        """End the gateway."""
        await self.http.aclose()
        if self.process is not None:
            self.process.terminate()
            try:
                await asyncio.to_thread(self.process.wait, 30)
            except subprocess.TimeoutExpired:
                await self.end_hard()


class ThisGateway(HttpTarget):
    """A gateway of this project, with a warm pool of `warm` sandboxes.

    `checkout` is the folder of its sources with a virtual environment in .venv; None: these sources.
    """

    name = "llmsafespace"

    def __init__(self, data_dir: Path, warm: int = 3, checkout: Path | None = None, name: str = "") -> None:
        super().__init__()
        self.data_dir = data_dir
        self.warm = warm
        self.name = name or self.name
        self._checkout = checkout
        self._port = 0

    def sibling(self, data_dir: Path, warm: int) -> ThisGateway:
        """Another gateway of the same sources."""
        return ThisGateway(data_dir, warm, self._checkout, self.name)

    async def start(self) -> None:
        """Start and wait until the pool is full; the same port and data as before."""
        await self.serve()
        await self.settled()

    async def serve(self) -> None:
        """Start and wait until it serves."""
        pool = {"name": "bench", "runtime": "python", "minSize": self.warm, "maxSize": self.warm}
        config = self.data_dir / "config.json"
        settings: dict[str, Any] = {"warm_pools": [pool], "rate_limit": 1e6, "rate_burst": 1_000_000}
        settings["quotas"] = {"sandboxes": 1000, "cpu": 1000, "memory": 2**50}
        config.write_text(json.dumps({"GatewayApp": settings}))
        python = sys.executable if self._checkout is None else str(self._checkout / ".venv/bin/python")
        command = [python, "-m", "llmsafespace_gateway", "--port", str(self._port)]
        command += ["--data-dir", str(self.data_dir), "--config", str(config)]
        process = self._spawn(command, cwd=self._checkout)
        assert process.stdout is not None
        loop = asyncio.get_running_loop()
        self.url = ""
        while not self.url or self.key == "benchmark":
            line = await loop.run_in_executor(None, process.stdout.readline)
            assert line, f"{self.name} ended at its start"
            if found := re.search(r"serves on (http://\S+:(\d+))", line):
                self.url, self._port = found[1], int(found[2])
            if found := re.search(r"(lsp_\w+)", line):
                self.key = found[1]
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def agents(self) -> list[psutil.Process]:
        """The agents of this gateway's own sandboxes that live: each is the first process of its sandbox."""
        found = []
        for path in self.data_dir.glob("sandboxes/*/first"):
            with contextlib.suppress(psutil.NoSuchProcess, OSError, ValueError):
                pid, started = path.read_text().split()
                agent = psutil.Process(int(pid))
                same = start_time(agent.pid) == started  # otherwise a later process of this number
                if same and agent.status() != psutil.STATUS_ZOMBIE:
                    found.append(agent)
        return found

    def agents_and_kernels(self) -> tuple[list[psutil.Process], list[psutil.Process]]:
        """The agents, and the processes below them."""
        agents = self.agents()
        return agents, [child for agent in agents for child in agent.children(recursive=True)]

    async def end_hard(self) -> None:
        """End the gateway, and with it every sandbox, which would otherwise live on."""
        await super().end_hard()
        for agent in self.agents():
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.kill()
        deadline = time.monotonic() + GONE
        while agents := self.agents():
            if time.monotonic() > deadline:
                left = ", ".join(str(agent.pid) for agent in agents)
                raise TimeoutError(f"agents live {GONE:g} s after they were killed: {left}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End the gateway and its sandboxes."""
        await super().stop()
        await self.end_hard()

    async def settled(self, limit: float = 300.0) -> None:
        """Wait until the warm pool is full again."""
        deadline = time.monotonic() + limit
        while self.warm and time.monotonic() < deadline:
            answer = await self.http.get(f"{self.url}/api/v1/warmpools/bench/status", headers=self.headers)
            if answer.status_code == 200 and answer.json()["availablePods"] >= self.warm:
                await asyncio.sleep(0.3)
                return
            await asyncio.sleep(0.05)
        if self.warm:
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


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
