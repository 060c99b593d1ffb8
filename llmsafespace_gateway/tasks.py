"""Tasks whose end somebody sees: an exception that nobody takes is logged as a fault of the gateway."""

from __future__ import annotations

import asyncio
from typing import Any


async def end(future: asyncio.Future[Any]) -> None:
    """Cancel one that runs, wait for its end, and take what it failed with, before or meanwhile.

    `cancel()` alone silences what has failed already, and not what fails because it is cancelled.
    """
    if not future.done():
        future.cancel()
        await asyncio.wait({future})
    if not future.cancelled():
        future.exception()
