"""bind: once, for one claim, completely."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from .conftest import Refused, text


async def test_bind_twice_is_one_bind(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    context = str(uuid.uuid4())
    wish = {"claimId": "c", "sandboxId": "sb-1", "contextId": context, "env": {"A": "1"}}
    numbers = [rpc.ask("bind", **wish) for _ in range(4)]
    answers = [await rpc.answer() for _ in numbers]
    assert {answer.id for answer in answers} == set(numbers)
    assert all(answer.error is None for answer in answers)
    assert len({bytes(answer.result) for answer in answers}) >= 1
    status = await rpc("bind", **wish)
    assert [one.id for one in status.contexts] == [context]
    assert status.state == "bound"
    for other in ({**wish, "claimId": "d"}, {**wish, "env": {"A": "2"}}):
        with pytest.raises(Refused) as caught:
            await rpc("bind", **other)
        assert caught.value.error.code == "conflict"


async def test_two_claims_at_once_give_one_bind(launch: Any) -> None:
    agent = await launch()
    streams = [await agent.rpc() for _ in range(6)]

    async def claim(number: int) -> str:
        try:
            await streams[number](
                "bind", claimId=f"c{number}", sandboxId=f"sb-{number}", contextId=f"k{number}"
            )
        except Refused as refused:
            return refused.error.code
        return "bound"

    outcomes = await asyncio.gather(*(claim(number) for number in range(6)))
    assert sorted(outcomes) == ["bound"] + ["conflict"] * 5


async def test_env_folder_and_zone_are_there_from_the_first_line(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    await rpc("ready")
    await agent.bind(rpc, env={"WHO": "ann $(id)", "PATH2": "x"}, cwd="deep/er", timezone="Asia/Tokyo")
    code = "import os, time; print(os.environ['WHO'], os.getcwd(), time.tzname[0])"
    got, _ = await agent.execution(uuid.uuid4().hex, code=code)
    assert text(got) == f"ann $(id) {agent.workspace}/deep/er JST\n"
    await rpc("commands.start", id="c1", command="echo $WHO; date +%Z")
    stream, _ = await agent.open("command", command="c1")
    out = ""
    while (kind_body := await stream.next_frame())[1].startswith(b'{"seq"'):
        out += kind_body[1].decode()
    assert "ann $(id)" in out


async def test_an_unbound_sandbox_runs_nothing(launch: Any) -> None:
    agent = await launch()
    rpc = await agent.rpc()
    assert (await rpc("ready")).state == "ready"
    for method, params in (("contexts.list", {}), ("files.list", {}), ("commands.start", {"id": "x"})):
        with pytest.raises(Refused) as caught:
            await rpc(method, **params)
        assert caught.value.error.code == "conflict"
    with pytest.raises(Refused) as caught:
        await agent.open("execution", execution="e", code="1")
    assert caught.value.error.code == "conflict"


@pytest.mark.parametrize(
    "wrong",
    [
        {"env": {"A=B": "x"}},
        {"env": {"A": "nul\0"}},
        {"env": {"A": 5}},
        {"cwd": "/no/such/folder"},
        {"cwd": "x\0"},
        {"timezone": "../../etc/passwd"},
        {"language": "cobol"},
        {"contextId": ""},
        {"contextId": "../x"},
        {"limits": {"timeout": -1}},
        {"limits": {"maxLifetime": 0}},
        {"limits": {"idleTimeout": 1e300}},
        {"limits": 5},
        {"claimId": None},
    ],
)
async def test_a_bad_bind_is_refused_and_a_good_one_still_possible(launch: Any, wrong: Any) -> None:
    agent = await launch(parked=0)
    rpc = await agent.rpc()
    with pytest.raises(Refused) as caught:
        await agent.bind(rpc, **wrong)
    assert caught.value.error.code == "invalid_request"
    assert (await rpc("status")).state == "starting"


async def test_what_cannot_be_bound_late_is_there_all_the_same(launch: Any) -> None:
    agent = await launch()
    await agent.bind(await agent.rpc(), env={"PYTHONHASHSEED": "7"})
    got, _ = await agent.execution(uuid.uuid4().hex, code="import os; print(os.environ['PYTHONHASHSEED'])")
    assert text(got) == "7\n"
