"""The runs: sandboxes that come and go at a rate, and many that stay."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from benchmarks.kubernetes import load
from benchmarks.kubernetes.installation import Installation
from benchmarks.kubernetes.load import Load
from benchmarks.kubernetes.meters import (
    Samples,
    Use,
    client_writes,
    grown,
    percentiles,
    reconciles,
    server_writes,
)

AT_ONCE = 16  # requests of the scale run
QUIET = 60.0  # seconds in which nothing is asked of it
SETTLE_LIMIT = 600.0
FILL_LIMIT = 1800.0
MIB = 1024 * 1024


class Reading(msgspec.Struct, frozen=True):
    """What is read off at one moment."""

    operator: Samples
    gateway: Samples
    server: Samples
    operator_use: Use
    gateway_use: Use


async def read(installation: Installation) -> Reading:
    """Read everything off."""
    return Reading(
        operator=await installation.operator.metrics(),
        gateway=await installation.gateway.metrics(),
        server=await installation.server_metrics(),
        operator_use=installation.operator.use(),
        gateway_use=installation.gateway.use(),
    )


async def at_rate(installation: Installation, rate: float, seconds: float, warm: int) -> dict[str, Any]:
    """Arrivals at a rate, measured until the pool is full again and nothing is left of any sandbox."""
    filled = await installation.resize(warm, FILL_LIMIT)
    before = await read(installation)
    seen = await load.arrivals(installation.clients, rate, seconds)
    left = await installation.left_over(warm, 0, SETTLE_LIMIT)
    after = await read(installation)
    return {
        "pool filled, s": filled,
        **_clients(seen),
        "pods handed out twice": installation.second_binds(),
        "left over": left or "nothing",
        **_per_sandbox(before, after, len(seen.bound)),
        **_totals(before, after),
    }


async def at_scale(installation: Installation, sandboxes: int, warm: int) -> dict[str, Any]:
    """Many sandboxes that stay beside a full pool; then a while of nothing; then all are deleted."""
    await installation.resize(warm, FILL_LIMIT)
    before = await read(installation)
    filled, made = await load.fill(installation.clients, sandboxes, AT_ONCE)
    left = await installation.left_over(warm, len(made), FILL_LIMIT)
    after = await read(installation)
    await asyncio.sleep(QUIET)
    quiet = await read(installation)
    emptied = await load.empty(installation.clients, made, AT_ONCE)
    remains = await installation.left_over(warm, 0, FILL_LIMIT)
    return {
        **_clients(filled),
        "pods handed out twice": installation.second_binds(),
        "not as wanted": left or "nothing",
        **_per_sandbox(before, after, len(made)),
        **_totals(before, after),
        "quiet: operator, of a core": _cpu(after, quiet)["operator"] / QUIET,
        "quiet: gateway, of a core": _cpu(after, quiet)["gateway"] / QUIET,
        "operator's memory per sandbox, KiB": _growth(before, after) / max(1, len(made)) / 1024,
        "deleted in s": emptied.seconds,
        "errors of deletion": dict(emptied.errors),
        "left over": remains or "nothing",
    }


def _clients(seen: Load) -> dict[str, Any]:
    served = len(seen.bound)
    return {
        "bound": served,
        "POST to bound, ms": percentiles(seen.bound),
        "starts": dict(seen.kinds),
        "errors": dict(seen.errors),
        "stuck": seen.stuck,
        "served per second": served / seen.seconds if seen.seconds else 0.0,
    }


def _per_sandbox(before: Reading, after: Reading, sandboxes: int) -> dict[str, Any]:
    """Refilling the pool and cleaning up included."""
    count = max(1, sandboxes)
    by_resource = server_writes(grown(before.server, after.server))
    own = client_writes(grown(before.operator, after.operator)) + client_writes(
        grown(before.gateway, after.gateway)
    )
    cpu = _cpu(before, after)
    return {
        "CPU per sandbox, ms": {name: 1000 * seconds / count for name, seconds in cpu.items()},
        "API writes per sandbox": sum(by_resource.values()) / count,
        "of these": {name: value / count for name, value in by_resource.items()},
        "by our own count, with events": own / count,
    }


def _totals(before: Reading, after: Reading) -> dict[str, Any]:
    return {
        "operator's memory, MiB": after.operator_use.rss / MIB,
        "gateway's memory, MiB": after.gateway_use.rss / MIB,
        **{
            f"reconciles of {queue}": values
            for queue, values in reconciles(grown(before.operator, after.operator)).items()
        },
    }


def _cpu(before: Reading, after: Reading) -> dict[str, float]:
    return {
        "operator": after.operator_use.cpu - before.operator_use.cpu,
        "gateway": after.gateway_use.cpu - before.gateway_use.cpu,
    }


def _growth(before: Reading, after: Reading) -> int:
    return after.operator_use.rss - before.operator_use.rss
