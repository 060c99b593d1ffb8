"""Clients that want a sandbox each, insist on it, use it, and end it."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

_LIMIT = 120.0  # seconds in which a client that insists is served
_CALL_LIMIT = 45.0  # seconds for one answer
_DWELL = (0.2, 2.0)
_SANDBOX = re.compile(r"sb-[0-9a-f]{20}")
_REPEATED = 0.2  # of all clients ask once more with the same key


class Seen(msgspec.Struct):
    """What the clients saw."""

    served: dict[str, str] = {}  # ids of sandboxes by Idempotency-Key
    retried: Counter[str] = msgspec.field(default_factory=Counter)  # what was tried again, and why
    wrong: list[str] = []  # what must not be


class Clients:
    """Clients of several gateways that are one installation."""

    def __init__(
        self,
        gateways: Sequence[str],
        key: str,
        runtime: str,
        http: aiohttp.ClientSession,
        draw: random.Random,
    ) -> None:
        self.seen = Seen()
        self._gateways = gateways
        self._headers = {"Authorization": f"Bearer {key}"}
        self._body = {"runtime": runtime, "env": {"WHO": "chaos"}, "resources": {"cpu": 0.1}}
        self._http = http
        self._draw = draw

    async def crowd(self, count: int, at_once: int) -> None:
        """So many lives, of which `at_once` are lived at a time."""
        numbers = iter(range(count))

        async def one_after_another() -> None:
            for _ in numbers:
                await self.life()

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))

    async def life(self, **more: Any) -> None:
        """One sandbox from its creation to its end. What goes wrong is in `seen`."""
        key = secrets.token_hex(8)
        sandbox = await self._create(key, more)
        if sandbox is None:
            return
        if sandbox in self.seen.served.values():
            self.seen.wrong.append(f"{sandbox} was given to two clients")
        self.seen.served[key] = sandbox
        if self._draw.random() < _REPEATED:
            again = await self._create(key, more)
            if again not in (sandbox, None):
                self.seen.wrong.append(f"the same key gave {sandbox}, then {again}")
        await asyncio.sleep(self._draw.uniform(*_DWELL))
        state = await self._insist("GET", f"/{sandbox}/status", 200)
        if state is not None and state["status"] != "running":
            self.seen.wrong.append(f"{sandbox} ended by itself: {state}")
        await self._insist("DELETE", f"/{sandbox}", 204)

    async def _create(self, key: str, more: dict[str, Any]) -> str | None:
        answer = await self._insist("POST", "", 201, key, {**self._body, **more})
        return str(answer["id"]) if answer is not None else None

    async def _insist(
        self, method: str, path: str, wanted: int, key: str = "", body: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The answer that is wanted, from whichever gateway gives it; None when none did, which is wrong."""
        deadline = time.monotonic() + _LIMIT
        why = ""
        while time.monotonic() < deadline:
            status, answer, why = await self._call(method, path, key, body)
            if status == wanted:
                return answer
            if status not in (0, 429, 503):
                break
            self.seen.retried[_SANDBOX.sub("…", f"{method} {why}")] += 1
            await asyncio.sleep(self._draw.uniform(0.1, 0.5))
        self.seen.wrong.append(f"{method} {path}: {why}")
        return None

    async def _call(
        self, method: str, path: str, key: str, body: dict[str, Any] | None
    ) -> tuple[int, dict[str, Any], str]:
        """Status (0: no answer), document, and a word on it."""
        url = f"{self._draw.choice(self._gateways)}/api/v1/sandboxes{path}"
        headers = {**self._headers, "Idempotency-Key": key} if key else self._headers
        timeout = aiohttp.ClientTimeout(total=_CALL_LIMIT)
        try:
            async with self._http.request(method, url, json=body, headers=headers, timeout=timeout) as answer:
                text = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, {}, type(error).__name__
        document: dict[str, Any] = msgspec.json.decode(text) if text else {}
        if answer.status < 400:
            return answer.status, document, f"{answer.status}"
        message = document.get("error", {}).get("message", "")
        if not message:
            self.seen.wrong.append(f"{method} {path}: {answer.status} without a message")
        return answer.status, document, f"{answer.status} {message}"
