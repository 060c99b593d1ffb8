"""Contexts: several kernels, restart, removal."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from .conftest import Got, Refused, end_of, text


async def test_restart_keeps_the_numbering_and_tells_the_readers(agent: Any) -> None:
    session = await agent.session()
    await session.run("x = 1")
    before = max(got.seq for got in session.got if isinstance(got, Got))
    running = session.execute("import time; print('on', flush=True); time.sleep(60)")
    await session.until(lambda got: got.kind == "stream")
    info = await agent.calls("contexts.restart", id=agent.context)
    assert info.state == "idle"
    told = await session.until(
        lambda got: got.kind == "status" and got.content["execution_state"] == "restarting"
    )
    assert told.seq > before
    got = await session.finish(running)
    assert end_of(got) == "kernel_died"
    assert text(await session.run("print('x' in globals())")) == "False\n"
    seqs = [got.seq for got in session.got if isinstance(got, Got)]
    assert seqs == sorted(set(seqs))


async def test_messages_sent_during_a_restart_are_not_lost(agent: Any) -> None:
    session = await agent.session()
    await session.run("1")
    number = agent.calls.ask("contexts.restart", id=agent.context)
    executions = [session.execute(f"print({i})") for i in range(5)]
    ends = [end_of(messages) for messages in await session.finish_all(executions)]
    assert (await agent.calls.answer()).id == number
    assert set(ends) <= {"ok", "kernel_died"}
    assert text(await session.run("print('after')")) == "after\n"


async def test_further_contexts(agent: Any) -> None:
    wish = {"id": str(uuid.uuid4()), "name": "second", "env": {"B": "2"}, "cwd": "sub"}
    made = await agent.calls("contexts.create", **wish)
    assert (made.language, made.state, made.name) == ("python", "idle", "second")
    assert (await agent.calls("contexts.create", **wish)).id == made.id
    with pytest.raises(Refused) as caught:
        await agent.calls("contexts.create", **{**wish, "name": "other"})
    assert caught.value.error.code == "conflict"
    assert [one.id for one in await agent.calls("contexts.list")] == [agent.context, made.id]
    got, _ = await agent.execution(
        uuid.uuid4().hex, context=made.id, code="import os; print(os.environ['B'], os.getcwd())"
    )
    assert text(got) == f"2 {agent.workspace}/sub\n"
    session = await agent.session(context=made.id)
    await agent.calls("contexts.remove", id=made.id)
    seen: list[Any] = [await session.next()]
    while isinstance(seen[-1], Got):
        seen.append(await session.next())
    assert seen[-1]["code"] == "gone"
    assert seen[-2].content["execution_state"] == "dead"
    with pytest.raises(Refused) as caught:
        await agent.calls("contexts.get", id=made.id)
    assert caught.value.error.code == "not_found"


async def test_bad_contexts_are_refused(agent: Any) -> None:
    for wrong in ({"id": ""}, {"id": "a", "language": "cobol"}, {"id": "a", "cwd": "/nowhere"}, {"id": 7}):
        with pytest.raises(Refused) as caught:
            await agent.calls("contexts.create", **wrong)
        assert caught.value.error.code == "invalid_request"
    for method in ("contexts.restart", "contexts.interrupt", "contexts.remove"):
        with pytest.raises(Refused) as caught:
            await agent.calls(method, id="unknown")
        assert caught.value.error.code == "not_found"
    with pytest.raises(Refused) as caught:
        await agent.calls("no.such.method")
    assert caught.value.error.code == "invalid_request"


async def test_status_tells_what_there_is(agent: Any) -> None:
    session = await agent.session()
    await session.run("1")
    status = await agent.calls("status")
    assert status.state == "bound"
    assert status.sandbox_id == "sb-1"
    assert status.connections == 1
    assert status.expires_at > status.started_at
    assert status.usage.processes >= 2
    assert status.usage.memory_bytes > 0
    assert status.usage.cpu_seconds > 0
    (context,) = status.contexts
    assert (context.state, context.executions, context.connections) == ("idle", 1, 1)
