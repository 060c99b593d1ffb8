"""The egress proxy of a cluster: it knows a sandbox by the signed token that its agent sends ahead.

It has no state, no database and no rights: the token says what its sandbox may reach (see egress_token.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter as Count
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from llmsafespace_gateway.egress.connection import Connection, Decided, Dialer, Limits, Policy
from llmsafespace_gateway.egress.http_head import error_answer
from llmsafespace_gateway.egress.rules import Network, Rule, to_rules
from llmsafespace_kube.claims.egress_token import BadToken, EgressGrant, verify
from llmsafespace_protocol.egress import MAX_PREAMBLE, token_of

log = logging.getLogger("llmsafespace.egress")

AT_ONCE = 4096  # connections of all sandboxes together
_BACKLOG = 512
_GOODBYE = 1.0  # seconds for a refused client to read why


class Metrics:
    """What this proxy counts. It holds no tenant's data: no hosts, no ids."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "llmsafespace_egress_decisions",
            "Destinations that were allowed or denied to a sandbox.",
            ("decision",),
            registry=self.registry,
        )
        self.refused = Counter(
            "llmsafespace_egress_refused",
            "Connections without a valid token, or over a limit.",
            ("reason",),
            registry=self.registry,
        )
        self.connections = Gauge(
            "llmsafespace_egress_connections", "Connections that are open.", registry=self.registry
        )


class _Refused(Exception):
    """The peer is none of our sandboxes, or has no room; `reason` is a metric's label."""

    def __init__(self, reason: str, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class EgressService:
    """Serves every sandbox that comes with a token under `key`, from its own address.

    `index_rules` are allowed to all of them; `denied` are refused although they are public; `limits` are
    those of one sandbox.
    """

    def __init__(
        self,
        key: bytes,
        index_rules: Sequence[Rule],
        *,
        denied: Sequence[Network] = (),
        limits: Limits | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.metrics = Metrics()
        self._key = key
        self._index_rules = tuple(index_rules)
        self._limits = limits or Limits()
        self._dialer = Dialer(self._limits, denied)
        self._now = now
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._peers: Count[str] = Count()

    async def start(self, port: int, host: str | None = None) -> int:
        """Listen on all addresses, or on `host`, where port 0 is any; returns the port. Raises OSError."""
        self._server = await asyncio.start_server(
            self._accepted, host, port, limit=self._limits.buffer, backlog=_BACKLOG
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self, patience: float) -> None:
        """Accept no more, and end what is still open after `patience` seconds."""
        if self._server is not None:
            self._server.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=patience)
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        if peer is None:  # gone already
            writer.close()
            return
        address = str(peer[0])
        self._peers[address] += 1
        self.metrics.connections.inc()
        task = asyncio.create_task(self._serve(address, reader, writer))
        self._connections.add(task)
        task.add_done_callback(lambda task: self._ended(address, task))

    def _ended(self, address: str, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self.metrics.connections.dec()
        self._peers[address] -= 1
        if not self._peers[address]:
            del self._peers[address]

    async def _serve(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._check_room(address)
            grant, policy = await self._known(address, reader)
            connection = Connection(
                reader, writer, policy, self._dialer, self._limits, self._audit(grant.sandbox_id, address)
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grant.expires - self._now()):
                    await connection.serve()
        except _Refused as refused:
            self.metrics.refused.labels(refused.reason).inc()
            log.warning("egress refused: %s", refused, extra={"fields": {"address": address}})
            await _say_goodbye(reader, writer, error_answer(refused.status, f"Egress: {refused}"))
        except (OSError, asyncio.IncompleteReadError):
            pass  # it went away before it had said who it is
        except Exception:
            log.exception("an egress connection failed", extra={"fields": {"address": address}})
        finally:
            writer.close()

    def _check_room(self, address: str) -> None:
        if self._peers[address] > self._limits.connections:
            raise _Refused("limit", "too many connections of this sandbox at once; close some first", 503)
        if len(self._connections) > AT_ONCE:
            raise _Refused("limit", "the proxy has too many connections; try again later", 503)

    async def _known(self, address: str, reader: asyncio.StreamReader) -> tuple[EgressGrant, Policy]:
        """Who has connected, and what it may reach. Raises _Refused, OSError, IncompleteReadError."""
        try:
            async with asyncio.timeout(self._limits.head):
                line = await reader.readuntil(b"\n")
        except TimeoutError:
            raise _Refused("preamble", "no token was sent in time", 408) from None
        except asyncio.LimitOverrunError:
            raise _Refused("preamble", "the first line is too long") from None
        token = token_of(line) if len(line) <= MAX_PREAMBLE else None
        if token is None:
            raise _Refused("preamble", "this proxy serves sandboxes only, through their agents")
        try:
            grant = verify(self._key, token, address, self._now())
            return grant, Policy(grant.sandbox_id, (*self._index_rules, *to_rules(grant.rules)))
        except (BadToken, ValueError) as error:
            raise _Refused("token", str(error)) from None

    def _audit(self, sandbox: str, address: str) -> Decided:
        def decided(allowed: bool, host: str, port: int, reason: str) -> None:
            decision = "allowed" if allowed else "denied"
            self.metrics.decisions.labels(decision).inc()
            fields = {"sandbox": sandbox, "address": address, "host": host, "port": port, "reason": reason}
            log.info("egress %s", decision, extra={"fields": {"decision": decision, **fields}})

        return decided


async def _say_goodbye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Answer so that it arrives: what is closed with unread input resets the connection."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_GOODBYE):
            writer.write(answer)
            writer.write_eof()
            await writer.drain()
            while await reader.read(MAX_PREAMBLE):
                pass
