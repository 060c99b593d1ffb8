"""Clients that must not notice anything: they create, run and terminate while gateways restart."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from llmsafespace import AsyncSandbox


class Drill:
    """Clients on one address. Each round of a young one is a connection of its own; old ones keep theirs.

    `failures` says what went wrong, `rounds` how many whole rounds each kind of client made.
    """

    def __init__(self, url: str, key: str, **sandbox: Any) -> None:
        self.failures: list[str] = []
        self.rounds: Counter[str] = Counter()
        self._sandbox: dict[str, Any] = {**sandbox, "api_url": url, "api_key": key}
        self._over = asyncio.Event()

    async def young(self) -> None:
        """Create, run, terminate, again and again."""
        while not self._over.is_set():
            await self._guard("young", self._round())

    async def _round(self) -> None:
        async with AsyncSandbox(**self._sandbox) as sandbox:
            execution = await sandbox.run_code("print('hello'); 6 * 7")
            self._expect(execution.stdout == "hello\n" and execution.text == "42", execution)
            result = await sandbox.run_command("echo $((6 * 7))")
            self._expect(result.stdout == "42\n", result)

    async def old(self) -> None:
        """One sandbox, over connections that are made once; its counter shows what ran twice or never."""
        async with AsyncSandbox(**self._sandbox) as sandbox:
            await self._guard("old", self._count(sandbox))

    async def _count(self, sandbox: AsyncSandbox) -> None:
        await sandbox.run_code("count = 0")
        expected = 0
        while not self._over.is_set():
            expected += 1
            execution = await sandbox.run_code("count += 1\nprint(count)")
            self._expect(execution.stdout == f"{expected}\n", (expected, execution))
            await sandbox.files.write("number", str(expected))
            self._expect(await sandbox.files.read("number") == str(expected).encode(), expected)
            self.rounds["old"] += 1
            await asyncio.sleep(0.05)

    async def _guard(self, kind: str, work: Awaitable[None]) -> None:
        try:
            await work
            self.rounds[kind] += 1
        except Exception as error:
            self.failures.append(f"{kind}: {error!r}")

    def _expect(self, holds: bool, what: object) -> None:
        if not holds:
            self.failures.append(f"wrong: {what}")

    async def during(self, restarts: Sequence[Callable[[], object]], clients: int = 3) -> None:
        """Run the clients while each of `restarts` (blocking) is carried out in turn.

        Between two of them every kind of client makes a round, so that each restart meets all of them.
        """
        work = [self.old(), *(self.young() for _ in range(clients - 1))]
        tasks = [asyncio.create_task(each) for each in work]
        try:
            for restart in restarts:
                before = self.rounds.copy()
                while any(self.rounds[kind] <= before[kind] for kind in ("old", "young")):
                    if self.failures:
                        return
                    await asyncio.sleep(0.02)
                await asyncio.to_thread(restart)
            self._over.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 180)
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
