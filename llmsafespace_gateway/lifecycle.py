"""Start, serve and drain: the life of one gateway process, in the order that keeps promises.

Start: the socket is bound first (a port in use ends the start before anything is touched), what arrives
meanwhile gets 503 with Retry-After, then every part is started, and last the first admin key is made and
shown. Drain: readiness off, no new connections, websockets and idle connections are told to come back,
running requests get `drain_timeout`, then the rest is closed. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from llmsafespace_gateway import descriptors, tasks, wiring
from llmsafespace_gateway.loop_watch import LoopWatch
from llmsafespace_gateway.serving import (
    Certificate,
    Server,
    TrustedProxies,
    listen_tcp,
    listen_unix,
    starting,
)
from llmsafespace_gateway.serving.limits import serving_limits

if TYPE_CHECKING:
    from llmsafespace_gateway.app import GatewayApp

log = logging.getLogger("llmsafespace_gateway")

_HURRIED = 3.0  # seconds from a second signal until the process ends, whatever still waits


class Signals:
    """The first SIGTERM or SIGINT sets `stop`, the second `now`."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.now = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        if not self.stop.is_set():
            self.stop.set()
            return
        self.now.set()
        asyncio.get_running_loop().call_later(_HURRIED, os._exit, 1)


async def serve(app: GatewayApp) -> None:
    """Serve until a signal comes, then drain. Raises ApiError with what to do when it cannot start."""
    signals = Signals()
    server = _listening(app)
    parent = asyncio.create_task(_standard_input_ended(signals.stop)) if app.embedded else None
    services: wiring.Gateway | None = None
    watch: LoopWatch | None = None
    try:
        services = await _unless(signals.stop, wiring.build(app))
        if services is not None:
            server.serve(services.application())
            gc.collect()
            gc.freeze()  # what is there for good: to walk it at each full collection holds the loop
            watch = LoopWatch(app.slow_callback) if app.slow_callback > 0 else None
            app.announce(services)
            await signals.stop.wait()
            await _drain(app, services, server, signals)
    finally:
        if parent is not None:
            parent.cancel()
        if watch is not None:
            watch.stop()
        await server.close()
        if services is not None:
            await services.close(end_sandboxes=app.embedded)


def _listening(app: GatewayApp) -> Server:
    """A server that answers already, saying that it is not ready."""
    limits = serving_limits(
        descriptors.raise_limit(),
        app.max_connections,
        app.max_connections_per_address,
        head=app.head_timeout,
        idle=app.keep_alive_timeout,
        stalled=app.stalled_timeout,
    )
    certificate = Certificate(app.certfile, app.keyfile) if app.certfile else None
    sockets = [listen_unix(app.socket)] if app.socket else listen_tcp(app.ip, app.port)
    if not app.socket:
        app.port = sockets[0].getsockname()[1]
    server = Server(starting.application(), limits, TrustedProxies(app.trusted_proxies), certificate)
    server.add_sockets(sockets)
    return server


async def _unless(
    stop: asyncio.Event, work: Coroutine[object, object, wiring.Gateway]
) -> wiring.Gateway | None:
    """The result of `work`; None, and `work` cancelled, when `stop` is set first."""
    building = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({building, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if building.done():
            return building.result()
    finally:
        stopping.cancel()
        await tasks.end(building)
    return None


async def _drain(app: GatewayApp, services: wiring.Gateway, server: Server, signals: Signals) -> None:
    log.info("draining: no new connections, sandboxes stay", extra={"fields": {"open": server.connections}})
    services.readiness.draining = True
    await _first(signals.now.wait(), asyncio.sleep(app.drain_delay))
    if signals.now.is_set():
        return
    server.begin_drain()
    ended = _ended(services, server)
    await _first(signals.now.wait(), ended, asyncio.sleep(app.drain_timeout))
    if server.connections:
        log.warning("connections are cut off", extra={"fields": {"open": server.connections}})


async def _ended(services: wiring.Gateway, server: Server) -> None:
    await services.tell_clients_to_return()
    await server.all_ended()


async def _first(*works: Coroutine[object, object, object]) -> None:
    """Until one of them is done; the others are cancelled."""
    running = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _standard_input_ended(stop: asyncio.Event) -> None:
    """Set `stop` when the parent has closed our standard input."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.read(4096):
            pass
    stop.set()
