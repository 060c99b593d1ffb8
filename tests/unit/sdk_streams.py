"""The SDK's stream of one kernel, to a gateway that a test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmsafespace.kernel_stream import KernelStream
from llmsafespace.settings import Endpoint
from llmsafespace.transport import Transport


@asynccontextmanager
async def kernel_stream_to(url: str) -> AsyncIterator[KernelStream]:
    """A stream to the gateway at `url`; closed at the end."""
    transport = Transport(Endpoint(url, "key"))
    made = KernelStream(transport, "kernel-id")
    yield made
    await made.close()
    await transport.close()
