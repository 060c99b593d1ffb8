"""The sandbox ends by itself: idle, too old, told to. Nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from .conftest import Refused, end_of


async def test_idle_sandbox_ends(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    await agent.bind(rpc, limits={"idleTimeout": 0.5})
    assert await agent.exited() == 10


async def test_presence_and_work_keep_it(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    await agent.bind(rpc, limits={"idleTimeout": 0.4})
    session = await agent.session()
    execution = session.execute("import time; time.sleep(1.2)")
    assert end_of(await session.finish(execution)) == "ok"
    await rpc("commands.start", id="c", command="sleep 1.2; touch done")
    session.stream.abort()
    assert await agent.exited() == 10
    assert (agent.workspace / "done").exists()


async def test_lifetime_ends_everything(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    await agent.bind(rpc, limits={"maxLifetime": 1.5, "idleTimeout": None})
    session = await agent.session()
    execution = session.execute("import time; time.sleep(600)")
    assert end_of(await session.finish(execution)) == "expired"
    assert await agent.exited() == 10


async def test_unbound_lifetime_and_changed_limits(launch: Any) -> None:
    short = await launch(maxLifetime=0.5, parked=0)
    assert await short.exited() == 10
    agent = await launch()
    rpc = await agent.rpc()
    await agent.bind(rpc)
    for wrong in ({"timeout": 0}, {"idleTimeout": -1}, {"maxLifetime": 1e10}):
        with pytest.raises(Refused) as caught:
            await rpc("set_limits", **wrong)
        assert caught.value.error.code == "invalid_request"
    await rpc("set_limits", idleTimeout=0.3)
    assert await agent.exited() == 10


async def test_termination_leaves_nothing(agent: Any) -> None:
    session = await agent.session()
    got = await session.run("import os; print(os.getpid())")
    pid = int(next(one.content["text"] for one in got if one.kind == "stream"))
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.exited() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not os.path.exists(agent.config["listen"]["unix"])
    left = [name for _, _, names in os.walk(agent.folder / "run") for name in names]
    assert left == []


async def test_wrong_words_for_the_end_are_refused(agent: Any) -> None:
    with pytest.raises(Refused) as caught:
        await agent.calls("shutdown", end="bored")
    assert caught.value.error.code == "invalid_request"


@pytest.mark.parametrize(
    "wrong", [{"token": "zz"}, {"token": "aa"}, {"kernels": []}, {"listen": {}}, {"maxLifetime": 0}]
)
async def test_bad_configurations_are_named(launch: Any, wrong: Any) -> None:
    agent = await launch(**wrong)
    assert await agent.exited() == 2


async def test_code_gives_way_to_its_agent_where_it_is_told_to(launch: Any) -> None:
    agent = await launch(limits={"nice": 3})
    rpc = await agent.rpc()
    await agent.bind(rpc)
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, agent.process.pid) + 3)
    session = await agent.session()
    execution = session.execute(f"import os; assert os.nice(0) == {wanted}, os.nice(0)")
    assert end_of(await session.finish(execution)) == "ok"
    await rpc("commands.start", id="c", command=f"sleep 0.2; nice > nice; test $(nice) = {wanted}")
    while (command := await rpc("commands.get", id="c")).running:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert command.end == "ok", (agent.workspace / "nice").read_text()
