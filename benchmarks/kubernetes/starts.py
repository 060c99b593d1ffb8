"""From the request to the first result, in real pods, through the SDK as people use it."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.kubernetes.installation import Installation
from benchmarks.kubernetes.load import RUNTIME_NAME
from benchmarks.kubernetes.meters import percentiles
from llmsafespace import AsyncSandbox

WARM = 2  # pods of the pool: one start leaves one
FILL_LIMIT = 300.0
_CODE = "import os; print(os.environ['WHO'])"


async def starts(installation: Installation, count: int) -> dict[str, Any]:
    """Warm and cold starts in turn; before each the pool is full and nothing else happens."""
    taken: dict[str, list[float]] = {"warm": [], "cold": []}
    await installation.resize(WARM, FILL_LIMIT)
    for number in range(count):
        for kind, times in taken.items():
            times.append(await _start(installation, kind, f"{kind}-{number}"))
            left = await installation.left_over(WARM, 0, FILL_LIMIT)
            if left:
                raise RuntimeError(f"the pool does not come back: {left}")
    return {f"{kind}: create to first result, ms": percentiles(times) for kind, times in taken.items()}


async def _start(installation: Installation, kind: str, who: str) -> float:
    clients = installation.clients
    began = time.monotonic()
    sandbox = await AsyncSandbox.create(
        runtime=RUNTIME_NAME,
        api_url=clients.url,
        api_key=clients.key,
        use_warm_pool=kind == "warm",
        env={"WHO": who},
    )
    try:
        execution = await sandbox.run_code(_CODE)
        took = time.monotonic() - began
    finally:
        await sandbox.terminate()
    if execution.stdout.strip() != who or sandbox.start.kind != kind:
        raise RuntimeError(f"a {kind} start was {sandbox.start.kind} and said {execution.stdout!r}")
    return 1000 * took
