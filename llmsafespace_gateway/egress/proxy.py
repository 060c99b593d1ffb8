"""The only way out of a sandbox: an HTTP proxy on a unix socket of the sandbox's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from llmsafespace_gateway.egress.connection import Connection, Dialer, Limits, Policy
from llmsafespace_gateway.egress.http_head import error_answer
from llmsafespace_gateway.egress.rules import Destination, Network, Rule, to_rules

log = logging.getLogger("llmsafespace.egress")

SOCKET = "proxy.sock"
BACKLOG = 64


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision about one connection, for the audit log. `key` names the sandbox."""

    key: str
    allowed: bool
    host: str
    port: int
    reason: str


OnDecision = Callable[[Decision], None]


class _Gate:
    """One sandbox's listening socket and its connections."""

    def __init__(self, path: Path, policy: Policy) -> None:
        self.path = path
        self.policy = policy
        self.server: asyncio.Server | None = None
        self.connections: set[asyncio.Task[None]] = set()


class EgressProxy:
    """Serves each sandbox a proxy of its own, which knows it by its socket.

    `index_rules` are allowed to every sandbox (package installation); `on_decision` is told each decision;
    `denied` are address ranges that are refused although they are public (a cluster's own).
    """

    def __init__(
        self,
        index_rules: Sequence[Rule] = (),
        on_decision: OnDecision | None = None,
        *,
        denied: Sequence[Network] = (),
        limits: Limits | None = None,
    ) -> None:
        self._index_rules = tuple(index_rules)
        self._on_decision = on_decision
        self._denied = tuple(denied)
        self._limits = limits or Limits()
        self._dialer = Dialer(self._limits, self._denied)
        self._gates: dict[str, _Gate] = {}

    async def open(
        self, key: str, folder: Path, rules: Iterable[Destination] = (), uid: int | None = None
    ) -> Path:
        """Listen on `folder`/proxy.sock for the sandbox `key`; an open one gets the new rules.

        Only the gateway's own user and `uid` may connect. Returns the socket's path. Raises ValueError for
        a rule that is none, OSError when the socket cannot be made.
        """
        policy = Policy(key, (*self._index_rules, *to_rules(rules)))
        gate = self._gates.get(key)
        if gate is not None and gate.path.parent == folder:
            gate.policy = policy
            return gate.path
        await self.close(key)
        gate = _Gate(folder / SOCKET, policy)
        listening = _listen(folder, uid)
        self._gates[key] = gate

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._accepted(key, gate, reader, writer)

        try:
            gate.server = await asyncio.start_unix_server(accepted, sock=listening, limit=self._limits.buffer)
        except BaseException:
            listening.close()
            self._gates.pop(key, None)
            raise
        return gate.path

    async def close(self, key: str) -> None:
        """Stop listening for `key` and end its connections; nothing when it is not open."""
        gate = self._gates.pop(key, None)
        if gate is None:
            return
        if gate.server is not None:
            gate.server.close()
        tasks = list(gate.connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            gate.path.unlink()

    async def stop(self) -> None:
        """Close all."""
        for key in list(self._gates):
            await self.close(key)

    def _accepted(
        self, key: str, gate: _Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._gates.get(key) is not gate:
            writer.close()
            return
        if len(gate.connections) >= self._limits.connections:
            writer.write(error_answer(503, "Too many connections of this sandbox at once; close some first."))
            writer.close()
            return
        task = asyncio.create_task(self._serve(key, gate, reader, writer))
        gate.connections.add(task)
        task.add_done_callback(gate.connections.discard)

    async def _serve(
        self, key: str, gate: _Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        def decided(allowed: bool, host: str, port: int, reason: str) -> None:
            log.info("egress %s %s:%d %s (%s)", "allowed" if allowed else "denied", host, port, reason, key)
            if self._on_decision is not None:
                self._on_decision(Decision(key=key, allowed=allowed, host=host, port=port, reason=reason))

        connection = Connection(reader, writer, gate.policy, self._dialer, self._limits, decided)
        try:
            await connection.serve()
        except Exception:
            log.exception("egress connection of %s failed", key)
        finally:
            writer.close()


def _listen(folder: Path, uid: int | None) -> socket.socket:
    """Listen on the socket in `folder`, whose path may be longer than a socket's address can be."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"/proc/self/fd/{descriptor}/{SOCKET}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listening.bind(path)
        os.chmod(path, 0o600)
        if uid is not None and uid != os.geteuid():
            os.chown(path, uid, -1)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(descriptor)
    return listening
