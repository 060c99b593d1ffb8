"""The network around the sandbox: shut before anything is served, and the port that says it is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from llmsafespace_protocol.configuration import host_and_port

PATIENCE = 30.0  # seconds that a platform has to put a new sandbox's network policy into force
_ANSWER = 1.0  # seconds within which a canary answers if it can be reached
_AGAIN = 0.1


class NetworkOpen(RuntimeError):
    """Code in this sandbox could reach what it must not."""


async def shut(canaries: Sequence[str]) -> None:
    """Wait until none of the `canaries` ("ip:port") can be reached.

    Raises NetworkOpen when one still can after PATIENCE seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while reached := await _reached(canaries):
        if loop.time() >= deadline:
            raise NetworkOpen(
                f"{', '.join(reached)} can be reached from here, which no sandbox may; does a NetworkPolicy "
                "that denies egress select this pod, and does the cluster's network enforce policies?"
            )
        await asyncio.sleep(_AGAIN)


async def _reached(canaries: Sequence[str]) -> list[str]:
    answers = await asyncio.gather(*map(_answers, canaries))
    return [canary for canary, answered in zip(canaries, answers, strict=True) if answered]


async def _answers(canary: str) -> bool:
    try:
        async with asyncio.timeout(_ANSWER):
            _, writer = await asyncio.open_connection(*host_and_port(canary))
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def listen_ready(host: str, port: int) -> asyncio.Server:
    """Accept connections, and end each at once: that they stand is all there is to know. Raises OSError."""
    return await asyncio.get_running_loop().create_server(_Closing, host, port)


class _Closing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
