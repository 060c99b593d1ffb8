"""Streams opened ahead: while a claim is on its way to the API server, TLS is made up with the pod."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.proof import ProofError


class Ahead:
    """A stream for each sandbox that is being made; nothing is asked on it before the claim is won."""

    def __init__(self) -> None:
        self._streams: dict[str, tuple[str, asyncio.Task[FrameStream]]] = {}

    def begin(self, sandbox_id: str, owner: str, dial: Coroutine[Any, Any, FrameStream]) -> None:
        """Open a stream to the agent of `owner`, instead of the one that was begun before."""
        self.drop(sandbox_id)
        self._streams[sandbox_id] = owner, asyncio.create_task(dial)

    async def take(self, sandbox_id: str, owner: str) -> FrameStream | None:
        """The stream to the agent of `owner`, once; None when there is none that works."""
        begun = self._streams.get(sandbox_id)
        if begun is None or begun[0] != owner:
            return None
        del self._streams[sandbox_id]
        try:
            return await begun[1]
        except (ProofError, OSError):
            return None

    def drop(self, sandbox_id: str) -> None:
        """Close what nobody took."""
        begun = self._streams.pop(sandbox_id, None)
        if begun is not None:
            begun[1].cancel()
            begun[1].add_done_callback(_close)


def _close(task: asyncio.Task[FrameStream]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
