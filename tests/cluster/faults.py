"""A bad road to the API server: a proxy that refuses, delays, loses, cuts and stalls, as it is told.

It speaks to the API server with the credentials of KUBECONFIG and serves plain HTTP on loopback without
any, so whoever is given its kubeconfig is an administrator.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from llmsafespace_kube.api.server import Server

_FORWARDED = ("Accept", "Content-Type", "User-Agent")
_RETURNED = ("Content-Type", "Retry-After")
_WRITES = ("POST", "PUT", "PATCH", "DELETE")
_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


@dataclass
class Faults:
    """How often what goes wrong, each from 0 (never) to 1 (always). The same seed draws the same numbers.

    `only` is a pattern searched in "METHOD path?query": what does not match is left alone.
    """

    seed: int = 0
    only: str = ""
    conflict: float = 0.0  # a write is answered 409 and not carried out
    error: float = 0.0  # a call is answered 500 and not carried out
    lost: float = 0.0  # a call is carried out, but the connection breaks before its answer
    gone: float = 0.0  # a watch is answered 410
    late: float = 0.0  # a call waits for up to `latency` seconds
    latency: float = 0.1
    cut: float = 0.0  # a watch breaks in the middle of a line (a chance for each line)
    stall: float = 0.0  # a watch falls silent for good, its connection open (a chance for each line)
    draw: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)

    def strikes(self, rate: float, request: web.BaseRequest) -> bool:
        """Whether a fault of this rate befalls the request."""
        if not rate or not re.search(self.only, f"{request.method} {request.path_qs}"):
            return False
        return self.draw.random() < rate


class _Watch:
    """A watch that passes through."""

    def __init__(self, response: web.StreamResponse, request: web.Request) -> None:
        self.stalled = False
        self._response = response
        self._transport = request.transport

    async def write(self, line: bytes) -> None:
        if not self.stalled:
            await self._response.write(line)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.close()


class FaultyServer:
    """The proxy. `faults` may be changed while it runs; `done` counts what went wrong, by fault or status."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.done: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()  # by method; WATCH is one of its own
        self._server: Server | None = None
        self._port = 0
        self._planned: list[tuple[str, int]] = []
        self._watches: set[_Watch] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Serve, on the same port as before if it was stopped."""
        server = self._server = self._server or await Server.find()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=server.tls, limit=0),
            headers=await server.credentials() | {"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=2**21,
        )
        self._runner = web.AppRunner(
            _application(self._serve), access_log=None, shutdown_timeout=0, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Break all connections and refuse new ones, as an API server that is down."""
        if self._runner is None:
            return
        for watch in list(self._watches):
            watch.cut()
        await self._runner.cleanup()
        await self._session.close()
        self._runner = None

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "faulty", "cluster": {"server": self.url}}],
            "users": [{"name": "anybody", "user": {}}],
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "anybody"}}],
            "current-context": "faulty",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def answer(self, status: int, *, times: int = 1, only: str = "") -> None:
        """Answer the next calls that match `only` with this status, without carrying them out."""
        self._planned += [(only, status)] * times

    def cut_watches(self) -> int:
        """Break every watch that is open; how many there were."""
        for watch in self._watches:
            watch.cut()
        return len(self._watches)

    def stall_watches(self) -> int:
        """Let every watch that is open stay open and silent for good; how many there were."""
        for watch in self._watches:
            watch.stalled = True
        return len(self._watches)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        watch = "watch=true" in request.query_string
        self.requests["WATCH" if watch else request.method] += 1
        if (status := self._refusal(request, watch)) is not None:
            self.done[str(status)] += 1
            return web.json_response(_status(status), status=status)
        if self.faults.strikes(self.faults.late, request):
            self.done["late"] += 1
            await asyncio.sleep(self.faults.draw.uniform(0, self.faults.latency))
        lost = not watch and self.faults.strikes(self.faults.lost, request)
        try:
            async with self._forward(request) as answer:
                headers = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
                if watch and answer.status == 200:
                    return await self._stream(request, answer, headers)
                body = await answer.read()
        except (aiohttp.ClientError, OSError):  # the API server itself is down
            return _broken(request)
        if lost:
            self.done["lost"] += 1
            return _broken(request)
        return web.Response(status=answer.status, body=body, headers=headers)

    def _refusal(self, request: web.Request, watch: bool) -> int | None:
        line = f"{request.method} {request.path_qs}"
        for planned in self._planned:
            if re.search(planned[0], line):
                self._planned.remove(planned)
                return planned[1]
        if watch:
            return 410 if self.faults.strikes(self.faults.gone, request) else None
        if request.method in _WRITES and self.faults.strikes(self.faults.conflict, request):
            return 409
        return 500 if self.faults.strikes(self.faults.error, request) else None

    @asynccontextmanager
    async def _forward(self, request: web.Request) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._server is not None
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        async with self._session.request(
            request.method,
            URL(self._server.url + request.raw_path, encoded=True),
            data=await request.read() or None,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            yield answer

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        watch = _Watch(response, request)
        self._watches.add(watch)
        try:
            async for line in _lines(answer):
                if self.faults.strikes(self.faults.cut, request):
                    self.done["cut"] += 1
                    await watch.write(line[: len(line) // 2])
                    watch.cut()
                    return response
                if not watch.stalled and self.faults.strikes(self.faults.stall, request):
                    self.done["stall"] += 1
                    watch.stalled = True
                await watch.write(line)
            if watch.stalled:
                await asyncio.Event().wait()  # until the client, or the proxy's end, breaks it
        finally:
            self._watches.discard(watch)
        return response


@asynccontextmanager
async def faulty_server(faults: Faults | None = None) -> AsyncIterator[FaultyServer]:
    """A proxy that runs for as long as the block."""
    server = FaultyServer(faults)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _application(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.Application:
    application = web.Application(client_max_size=2**24)
    application.router.add_route("*", "/{path:.*}", handler)
    return application


def _broken(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)


def _status(code: int) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "a fault made for a test",
        "reason": _REASONS.get(code, ""),
        "code": code,
    }
