"""Agents for pods that do not run: one process speaks the agents' protocol for every fake pod.

Each pod's address is routed to this machine, so the local address of a connection says which pod is meant.
Run as `python -m benchmarks.kubernetes.stubs KEY_FILE NAMESPACE…`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_agent.server import certificate
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.tokens import agent_token
from llmsafespace_kube.resources.kinds import POD
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.names import AGENT_PORT, COMPONENT, SANDBOX_COMPONENT
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.proof import ProofError, fingerprint, prove_as_agent
from llmsafespace_protocol.requests import (
    METHODS,
    Answer,
    BindRequest,
    ContextInfo,
    Empty,
    Error,
    ExecutionInfo,
    Open,
    Opened,
    OpenExecution,
    OpenRpc,
    Request,
    Status,
)

_UNKNOWN_LIMIT = 5.0  # seconds that our watch may lag behind the one of who connects
_PAUSE = 0.01
SERVING = "serving"
BOUND = "bound:"  # then the uid of the WarmPod or Sandbox, and the claim's id
SECOND_BIND = "a second bind:"


class Refused(Exception):
    """A request that an agent refuses."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = Error(code, message)


class StubAgent:
    """What an agent remembers: whose it is. It says yes to everything else."""

    def __init__(self, owner: str) -> None:
        self.streams: set[FrameStream] = set()
        self._owner = owner
        self._started = time.time()
        self._bound: BindRequest | None = None
        self._bound_at: float | None = None

    def bind(self, request: BindRequest) -> Status:
        """Raises Refused for any other claim than the first."""
        if self._bound is None:
            self._bound, self._bound_at = request, time.time()
            print(BOUND, self._owner, request.claim_id, flush=True)
        elif self._bound != request:
            print(SECOND_BIND, request.claim_id, flush=True)
            raise Refused("conflict", "this sandbox has been bound by another claim")
        return self.status()

    def status(self) -> Status:
        """The account of a sandbox in which nothing happens."""
        bound = self._bound
        return Status(
            state="bound" if bound else "ready",
            started_at=self._started,
            last_activity=self._bound_at or self._started,
            sandbox_id=bound.sandbox_id if bound else None,
            bound_at=self._bound_at,
            contexts=[self._context(bound)] if bound else [],
        )

    def call(self, method: str, params: msgspec.Raw) -> Any:
        """The result of a request. Raises Refused."""
        if method == "bind":
            return self.bind(msgspec.json.decode(params, type=BindRequest))
        if method == "contexts.list":
            return self.status().contexts
        if method not in METHODS or METHODS[method][1] not in (Status, Empty):
            raise Refused("invalid_request", f"a stub has no method {method}")
        return Empty() if METHODS[method][1] is Empty else self.status()

    def executed(self, wanted: OpenExecution) -> ExecutionInfo:
        """Code that printed nothing."""
        if self._bound is None:
            raise Refused("conflict", "this sandbox has not been bound yet")
        return ExecutionInfo(
            id=wanted.execution,
            context=self._bound.context_id,
            session=f"exec-{wanted.execution}",
            status="ended",
            started_at=time.time(),
            completed_at=time.time(),
            end="ok",
        )

    def _context(self, bound: BindRequest) -> ContextInfo:
        return ContextInfo(
            id=bound.context_id,
            name="",
            language=bound.language or "python",
            state="idle",
            cwd="/workspace",
            created_at=self._started,
            last_activity=self._bound_at or self._started,
        )


class StubAgents:
    """The agents of all pods; `owner_at` tells the uid of a pod's WarmPod or Sandbox by its address."""

    def __init__(self, key: bytes, owner_at: Callable[[str], str | None]) -> None:
        self._key = key
        self._owner_at = owner_at
        self._agents: dict[str, StubAgent] = {}
        self._fingerprint = ""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, pending_certificate: int, host: str = "0.0.0.0", port: int = AGENT_PORT) -> int:
        """Listen; returns the port."""
        with tempfile.TemporaryDirectory() as folder:
            tls, der = certificate.finish(pending_certificate, folder)
        self._fingerprint = fingerprint(der)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port, ssl=tls, backlog=1024)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """End every connection."""
        if self._server is not None:
            self._server.close()
        for owner in tuple(self._agents):
            self.forget(owner)
        for task in tuple(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def forget(self, owner: str) -> None:
        """The pod of this owner is no more."""
        agent = self._agents.pop(owner, None)
        for stream in tuple(agent.streams) if agent else ():
            stream.abort()

    def arrived(self, stream: FrameStream) -> None:
        """A connection stands."""
        task = asyncio.ensure_future(self._serve(stream))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def _accept(self) -> FrameStream:
        return _Incoming(self)

    async def _serve(self, stream: FrameStream) -> None:
        owner = await self._owner(stream.transport.get_extra_info("sockname")[0])
        if owner is None:
            stream.abort()
            return
        token = bytes.fromhex(agent_token(self._key, owner))
        try:
            wanted = await prove_as_agent(stream, token, self._fingerprint)
        except ProofError:
            return
        agent = self._agents.setdefault(owner, StubAgent(owner))
        agent.streams.add(stream)
        try:
            _open(agent, stream, msgspec.convert(wanted, Open))
            await stream.wait_closed()
        finally:
            agent.streams.discard(stream)

    async def _owner(self, address: str) -> str | None:
        deadline = time.monotonic() + _UNKNOWN_LIMIT
        while (owner := self._owner_at(address)) is None:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_PAUSE)
        return owner


class _Incoming(FrameStream):
    """A stream that reports its arrival."""

    def __init__(self, agents: StubAgents) -> None:
        super().__init__()
        self._agents = agents

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._agents.arrived(self)


def _open(agent: StubAgent, stream: FrameStream, wanted: Open) -> None:
    def send(document: Any) -> None:
        stream.send(FrameKind.JSON, msgspec.json.encode(document))

    def answer(kind: int, body: bytes) -> None:
        request = msgspec.json.decode(body, type=Request)
        try:
            result = agent.call(request.method, request.params)
        except Refused as refused:
            send(Answer(request.id, error=refused.error))
        else:
            send(Answer(request.id, result=msgspec.Raw(msgspec.json.encode(result))))

    try:
        if isinstance(wanted, OpenRpc):
            send(Opened())
            stream.receive(answer)
            return
        if not isinstance(wanted, OpenExecution):
            raise Refused("invalid_request", "a stub has no such stream")
        ended = agent.executed(wanted)
        send(Opened())
        send(ended)
    except Refused as refused:
        send(Opened(error=refused.error))
    stream.close()


def owner_of(pod: Pod) -> str:
    """The uid of the WarmPod or Sandbox that a pod belongs to."""
    return pod.metadata.owner_references[0].uid


async def _main(key: bytes, namespaces: list[str], pending_certificate: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await KubeClient.connect(user_agent="llmsafespace-bench-stubs")
    pods: Informer[Pod] = Informer(client, POD, namespaces, label_selector=f"{COMPONENT}={SANDBOX_COMPONENT}")
    pods.index("address", lambda pod: [pod.status.pod_ip] if pod.status.pod_ip else [])

    def owner_at(address: str) -> str | None:
        """An address is given again at once: of two pods the one that is not being deleted has it."""
        found = pods.by_index("address", address)
        living = [pod for pod in found if pod.metadata.deletion_timestamp is None]
        return owner_of((living or found)[0]) if found else None

    agents = StubAgents(key, owner_at)
    pods.on_change(lambda old, new: agents.forget(owner_of(old)) if old is not None and new is None else None)
    await pods.start()
    await agents.start(pending_certificate)
    print(SERVING, flush=True)
    await stop.wait()
    await agents.stop()
    await pods.stop()
    await client.close()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]).read_bytes().strip(), sys.argv[2:], certificate.begin()))
