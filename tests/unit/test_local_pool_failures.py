"""A pool whose starts fail waits longer after each failure, whatever the failure was."""

from __future__ import annotations

import asyncio

import pytest

from llmsafespace_gateway.backends.base import Resources, WarmPoolSpec
from llmsafespace_gateway.backends.local import pool as planning
from llmsafespace_gateway.backends.local.plans import Recipe
from llmsafespace_gateway.backends.local.pools import Pools
from llmsafespace_gateway.backends.local.registry import Entry
from llmsafespace_gateway.backends.local.starts import Starts
from llmsafespace_gateway.backends.runtimes.prepared import HostView, PreparedRuntime
from llmsafespace_gateway.errors import ApiError

RUNTIME = PreparedRuntime(
    id="probe",
    language="python",
    version="3",
    display_name="Probe",
    languages=("python",),
    binds=(),
    masks=(),
    folders=(),
    env={},
    kernels=(),
    agent_argv=(),
    package_manager=(),
    packages=(),
    host=HostView(env={}, kernels=(), agent_argv=(), package_manager=()),
)


@pytest.mark.parametrize(
    "error",
    [ApiError("service_unavailable", "no"), OSError("no"), RecursionError("no"), UnicodeError("no")],
    ids=lambda error: type(error).__name__,
)
async def test_the_next_start_waits_after_any_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "backoff", lambda failures: 60.0 * failures)
    tried = 0
    again = asyncio.Event()

    async def start(recipe: Recipe, key: str) -> tuple[Entry, list[str]]:
        nonlocal tried
        tried += 1
        again.set()
        raise error

    async def end(entry: Entry) -> None:
        raise AssertionError("nothing was started")

    pools = Pools(start, end, lambda key: 0, lambda spec, wanted: wanted, Starts(1))
    spec = WarmPoolSpec(name="warm", runtime="probe", min_size=1)
    pools.apply(spec, Recipe(runtime=RUNTIME, resources=Resources()))
    try:
        await asyncio.wait_for(again.wait(), 30)
        for _ in range(20):
            await asyncio.sleep(0)
        assert tried == 1
        condition = pools.status(spec).conditions[0]
        assert (condition.reason, condition.message[-2:]) == ("StartFailed", "no")
    finally:
        await pools.stop()
