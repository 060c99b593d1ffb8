"""Processes that are killed without warning and come back, as their Deployment would have it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import aiohttp
import psutil

_START_LIMIT = 60.0
_STOP_LIMIT = 30.0
_PAUSE = 0.1
_TAIL = 4000  # characters


class Victim:
    """`python -m module arguments…` on the road to the API server that its kubeconfig leads to."""

    def __init__(self, name: str, url: str, kubeconfig: Path, log: Path, *command: str) -> None:
        self.name = name
        self.url = url
        self.accidents = 0  # how often it ended although nobody had killed it
        self.deaths = 0
        self.memory = 0  # the most that it was seen to have, in bytes
        self.downtime = 0.0  # seconds between its next death and the start after it
        self._command = (sys.executable, "-m", *command)
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._killed = False
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start, and start again whenever it ends."""
        await self._spawn()
        self._keeping = asyncio.create_task(self._keep())
        await self.ready()

    async def ready(self) -> None:
        """Wait until it serves."""
        async with asyncio.timeout(_START_LIMIT), aiohttp.ClientSession() as http:
            while not await self._serves(http):  # noqa: ASYNC110
                await asyncio.sleep(_PAUSE)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self._process.returncode is None and not self._killed:
            self._killed = True
            self.deaths += 1
            self._process.kill()

    def look(self) -> None:
        """Take its memory down."""
        with contextlib.suppress(psutil.Error):
            if self._process is not None:
                self.memory = max(self.memory, psutil.Process(self._process.pid).memory_info().rss)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_LIMIT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def output(self) -> str:
        """All that it has printed, in all its lives."""
        return self._log.read_text(errors="replace")

    def tail(self) -> str:
        """The last of that."""
        return f"--- {self.name}\n{self.output()[-_TAIL:]}"

    async def _spawn(self) -> None:
        self._killed = False
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, env=self._environment
            )

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            await self._process.wait()
            if not self._killed:
                self.accidents += 1
            pause, self.downtime = self.downtime, 0.0
            await asyncio.sleep(pause)
            await self._spawn()

    async def _serves(self, http: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with http.get(f"{self.url}/readyz", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                return answer.status == 200
        return False
