"""Processes of the installation that is measured."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import psutil

from benchmarks.kubernetes.meters import Samples, Use, samples, use

_START_LIMIT = 60.0
_STOP_LIMIT = 30.0
_PAUSE = 0.1


class Process:
    """`python -m module arguments…`, with an HTTP port and its output in a file."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession, port: int, *command: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._name = command[0]
        self._http = http
        self._log = folder / f"{self._name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)

    async def ready(self, path: str = "/readyz") -> None:
        """Wait until it serves. Raises RuntimeError."""
        deadline = time.monotonic() + _START_LIMIT
        while self._process.poll() is None and time.monotonic() < deadline:
            if await self._get(path) is not None:
                return
            await asyncio.sleep(_PAUSE)
        raise RuntimeError(f"{self._name} does not serve:\n{self.output()[-4000:]}")

    async def said(self, text: str) -> None:
        """Wait until it has printed this. Raises RuntimeError."""
        deadline = time.monotonic() + _START_LIMIT
        while text not in self.output():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._name} does not serve:\n{self.output()[-4000:]}")
            await asyncio.sleep(_PAUSE)

    def output(self) -> str:
        """All that it has printed."""
        return self._log.read_text(errors="replace")

    def use(self) -> Use:
        """What it has used so far."""
        return use(psutil.Process(self._process.pid))

    async def metrics(self) -> Samples:
        """Its counters."""
        return samples(await self._get("/metrics") or "")

    async def _get(self, path: str) -> str | None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.get(self.url + path) as answer:
                return await answer.text() if answer.status == 200 else None
        return None

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, _STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
