"""How rows are measured: each target by itself, so that one that hangs or dies costs its own cell only.

`Bench.each` measures targets in turn. A target that fails or takes too long is ended with all its
processes and started again, and its cell says what happened; the row goes on with the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import psutil

from benchmarks.targets import HttpTarget, ThisGateway

RAW = "jupyter_client"
# A program that displays `n` pieces of `size` bytes.
DISPLAYS = "from IPython.display import display_png\nfor _ in range({n}): display_png('x' * {size}, raw=True)"
Values = dict[str, Any]
Cell = dict[str, Any]
LIMIT = 600.0  # seconds for one target's part of a row
_AGAIN = 300.0  # and for its start after a failure
T = TypeVar("T", bound=HttpTarget)


class Bench:
    """The running targets and how often to repeat. `ours` comes first; `against` is another checkout."""

    def __init__(
        self,
        ours: ThisGateway,
        peers: Sequence[HttpTarget] = (),
        scale: float = 1.0,
        against: ThisGateway | None = None,
        limit: float = LIMIT,
    ) -> None:
        self.ours = ours
        self.own: list[ThisGateway] = [ours] if against is None else [ours, against]
        self.gateways: list[HttpTarget] = [*self.own, *peers]
        self.scale = scale
        self.limit = limit

    def times(self, count: int) -> int:
        """`count` scaled, at least 3."""
        return max(3, int(count * self.scale))

    async def each(self, targets: Iterable[T], measure: Callable[[T], Awaitable[Any]]) -> Values:
        """Measure each target by itself; what fails is `{"failed": why}`, and its target is started again."""
        values: Values = {}
        for target in targets:
            values[target.name] = await self.one(target, measure)
        return values

    async def one(self, target: T, measure: Callable[[T], Awaitable[Any]]) -> Any:
        """One cell."""
        if target.missing is not None:
            return failed(target.missing)
        try:
            async with asyncio.timeout(self.limit):
                await target.settled()
                return await measure(target)
        except Exception as error:
            await self._again(target)
            return failed(error)

    async def raw(self, measure: Callable[[], Awaitable[Any]]) -> Any:
        """The cell of jupyter_client alone."""
        try:
            async with asyncio.timeout(self.limit):
                return await measure()
        except Exception as error:
            return failed(error)

    async def _again(self, target: HttpTarget) -> None:
        print(f"[{target.name} is started again]", end=" ", flush=True, file=sys.stderr)
        try:
            async with asyncio.timeout(_AGAIN):
                await target.end_hard()
                await target.start()
        except Exception as error:
            target.missing = f"it could not be started again: {_said(error)}"


def failed(why: Exception | str) -> Cell:
    """The cell of a measurement that did not come to an end."""
    return {"failed": why if isinstance(why, str) else _said(why)}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")[:200]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds that `work` takes."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


def rss(processes: Iterable[psutil.Process]) -> int:
    """Bytes in memory of all of them."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


class Peaks:
    """The largest RSS of groups of processes while something runs, in MB."""

    def __init__(self, **groups: Sequence[psutil.Process]) -> None:
        self.before = {name: rss(group) for name, group in groups.items()}
        self.most = dict(self.before)
        self._groups = groups
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Peaks:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            for name, group in self._groups.items():
                self.most[name] = max(self.most[name], rss(group))
            await asyncio.sleep(0.05)

    def grown(self, name: str) -> float:
        """MB above what it was before."""
        return (self.most[name] - self.before[name]) / 1e6

    def peak(self, name: str) -> float:
        """MB at most."""
        return self.most[name] / 1e6
