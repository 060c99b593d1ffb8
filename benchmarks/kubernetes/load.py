"""Sandboxes that come and go: arrivals at a rate, or as many as there shall be."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec

DWELL = 5.0  # seconds between bound and DELETE
LIMIT = 150.0  # of one request: longer than a gateway lets a cold start take
SETTLE = 300.0  # seconds after the last arrival; what is not over then is stuck
RUNTIME_NAME = "python:3.11"
BODY = {"runtime": RUNTIME_NAME, "env": {"WHO": "bench"}}


class Load(msgspec.Struct):
    """What clients saw. Times are milliseconds."""

    bound: list[float] = []
    kinds: Counter[str] = msgspec.field(default_factory=Counter)  # warm, cold
    errors: Counter[str] = msgspec.field(default_factory=Counter)
    deleted: int = 0
    stuck: int = 0
    seconds: float = 0.0  # from the first arrival until the last one is served


class Clients:
    """Clients of one gateway, behind one key."""

    def __init__(self, url: str, key: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.key = key
        self._sandboxes = f"{url}/api/v1/sandboxes"
        self._http = http
        self._headers = {"Authorization": f"Bearer {key}"}

    async def create(self, load: Load, arrived: float) -> str | None:
        """A sandbox's id once it is bound; None, and counted as an error, when the gateway refuses."""
        answer = await self._call(load, "POST", self._sandboxes, BODY)
        if answer is None:
            return None
        load.bound.append((time.monotonic() - arrived) * 1000)
        load.kinds[answer["start"]["kind"]] += 1
        return str(answer["id"])

    async def delete(self, load: Load, sandbox: str) -> None:
        """End a sandbox."""
        if await self._call(load, "DELETE", f"{self._sandboxes}/{sandbox}") is not None:
            load.deleted += 1

    async def _call(self, load: Load, method: str, url: str, body: Any = None) -> dict[str, Any] | None:
        timeout = aiohttp.ClientTimeout(total=LIMIT)
        try:
            async with self._http.request(
                method, url, json=body, headers=self._headers, timeout=timeout
            ) as answer:
                text = await answer.read()
                document: dict[str, Any] = msgspec.json.decode(text) if text else {}
                if answer.ok:
                    return document
                load.errors[f"{method} {answer.status} {document['error']['code']}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            load.errors[f"{method} {type(error).__name__}"] += 1
        return None


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times of arrivals; the same seed gives the same ones."""
    chance = random.Random(seed)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


async def arrivals(clients: Clients, rate: float, seconds: float) -> Load:
    """Sandboxes that arrive at random, each is bound, stays, and is deleted."""
    load = Load()
    began = time.monotonic()
    lives: set[asyncio.Task[None]] = set()

    async def life(arrived: float) -> None:
        sandbox = await clients.create(load, arrived)
        load.seconds = time.monotonic() - began
        if sandbox is not None:
            await asyncio.sleep(DWELL)
            await clients.delete(load, sandbox)

    for at in poisson(rate, seconds, seed=int(rate * 1000)):
        await asyncio.sleep(began + at - time.monotonic())
        lives.add(asyncio.create_task(life(began + at)))
    _, late = await asyncio.wait(lives, timeout=SETTLE)
    load.stuck = len(late)
    for task in late:
        task.cancel()
    await asyncio.gather(*lives, return_exceptions=True)
    return load


async def fill(clients: Clients, count: int, at_once: int) -> tuple[Load, list[str]]:
    """So many sandboxes that stay, `at_once` requested at a time; their ids."""
    load, made = Load(), list[str]()
    began = time.monotonic()
    waiting = iter(range(count))

    async def worker() -> None:
        for _ in waiting:
            sandbox = await clients.create(load, time.monotonic())
            if sandbox is not None:
                made.append(sandbox)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    load.seconds = time.monotonic() - began
    return load, made


async def empty(clients: Clients, sandboxes: list[str], at_once: int) -> Load:
    """Delete them all."""
    load = Load()
    began = time.monotonic()
    waiting = iter(sandboxes)

    async def worker() -> None:
        for sandbox in waiting:
            await clients.delete(load, sandbox)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    load.seconds = time.monotonic() - began
    return load
