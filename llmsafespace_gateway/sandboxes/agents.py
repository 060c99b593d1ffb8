"""Streams to agents: one pooled rpc stream per active sandbox, and one per client or transfer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import SandboxBackend
from llmsafespace_gateway.sandboxes.agent_client import CALL_TIMEOUT, AgentClient, opened, unreachable
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.requests import Open, OpenRpc

IDLE_AFTER = 30.0


class Agents:
    """All streams of this gateway to agents. An idle sandbox costs no descriptor."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend
        self._clients: dict[str, asyncio.Task[AgentClient]] = {}
        self._closers: dict[str, asyncio.TimerHandle] = {}

    async def open(self, sandbox_id: str, open_: Open) -> FrameStream:
        """A stream of its own, accepted by the agent. Raises ApiError."""
        stream = await self._backend.dial(sandbox_id, open_)
        await opened(stream)
        return stream

    async def call(
        self, sandbox_id: str, method: str, params: msgspec.Struct, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """One rpc call (see METHODS) on the pooled stream. Raises ApiError."""
        client = await self._client(sandbox_id)
        self._keep_open(sandbox_id)
        return await client.call(method, params, timeout)

    def forget(self, sandbox_id: str) -> None:
        """Close the pooled stream of a sandbox."""
        closer = self._closers.pop(sandbox_id, None)
        if closer is not None:
            closer.cancel()
        task = self._clients.pop(sandbox_id, None)
        if task is None:
            return
        if task.done() and not task.cancelled() and task.exception() is None:
            task.result().close()
        else:
            task.cancel()

    def close(self) -> None:
        """Close every pooled stream."""
        for sandbox_id in list(self._clients):
            self.forget(sandbox_id)

    async def _client(self, sandbox_id: str) -> AgentClient:
        task = self._clients.get(sandbox_id)
        if task is None or (task.done() and _unusable(task)):
            task = asyncio.ensure_future(self._connect(sandbox_id))
            self._clients[sandbox_id] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and (caller is None or not caller.cancelling()):
                raise unreachable() from None  # it was forgotten: the sandbox ends, and nobody cancelled us
            raise

    async def _connect(self, sandbox_id: str) -> AgentClient:
        return AgentClient(await self.open(sandbox_id, OpenRpc()))

    def _keep_open(self, sandbox_id: str) -> None:
        closer = self._closers.pop(sandbox_id, None)
        if closer is not None:
            closer.cancel()
        loop = asyncio.get_running_loop()
        self._closers[sandbox_id] = loop.call_later(IDLE_AFTER, self._close_idle, sandbox_id)

    def _close_idle(self, sandbox_id: str) -> None:
        task = self._clients.get(sandbox_id)
        if task is not None and task.done() and not _unusable(task) and task.result().busy:
            self._keep_open(sandbox_id)
        else:
            self.forget(sandbox_id)


def _unusable(task: asyncio.Task[AgentClient]) -> bool:
    return task.cancelled() or task.exception() is not None or task.result().closed
