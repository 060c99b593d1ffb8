"""Every request ends: what the kernel has dropped, and what waits behind others."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from tests.integration.agent.conftest import AgentProcess, Got, Launch, end_of, reply, text

KERNEL = "kernel = get_ipython().kernel\n"
NOT_THAT = "kernel.should_handle = lambda stream, message, idents: 'drop' not in str(message)"
DROPS = {
    "no reply": "send = kernel.session.send\n"
    "kernel.session.send = lambda to, kind, *rest, **more: (\n"
    "    {'content': {'status': 'ok'}} if kind == 'execute_reply' else send(to, kind, *rest, **more))",
    "busy and idle alone": NOT_THAT,
    "no sign at all": f"{NOT_THAT}\n"
    "kernel._publish_status = kernel._publish_status_and_flush = lambda *rest, **more: None",
}


@pytest.mark.parametrize("code", DROPS.values(), ids=DROPS)
async def test_what_the_kernel_drops_ends_with_a_word(agent: AgentProcess, code: str) -> None:
    session = await agent.session()
    await session.run("x = 5")
    session.execute(KERNEL + code)
    dropped = await session.run("'drop'")
    assert (end_of(dropped), reply(dropped).content["ename"]) == ("error", "RequestDropped")
    info = await agent.calls("contexts.get", id=agent.context)
    assert info.state != "dead"


async def test_a_kernel_that_is_not_ours_may_drop_as_well(launch: Launch) -> None:
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    agent = await launch(kernels=[{"language": "python", "argv": argv, "template": False}], parked=0)
    await agent.bind(await agent.rpc())
    session = await agent.session()
    await session.run(KERNEL + DROPS["busy and idle alone"])
    assert reply(await session.run("'drop'")).content["ename"] == "RequestDropped"
    assert reply(await session.run("6 * 7")).content["status"] == "ok"


async def test_what_takes_long_is_not_dropped(agent: AgentProcess) -> None:
    session = await agent.session()
    code = "import threading, time\n"
    code += "def later():\n    time.sleep(3.5)\n    print('late', flush=True)\n"
    code += "threading.Thread(target=later).start(); time.sleep(2.5); print('done')"
    first = session.execute(code)
    got = await session.finish(first)
    assert (end_of(got), text(got)) == ("ok", "done\n")
    late = await session.until(lambda message: message.content.get("text") == "late\n")
    assert late.parent["msg_id"] == first
    assert not any("probe" in getattr(message, "kind", "") for message in session.got)


async def test_time_limits_count_while_others_run(agent: AgentProcess) -> None:
    session = await agent.session()
    running = session.execute("import time; ran = []; time.sleep(4)", stop_on_error=False)
    queued = session.execute("ran.append(1)", metadata={"llmsafespace": {"timeout": 1}})
    late = await session.finish(queued)
    assert end_of(late) == "timeout"
    assert not any(
        isinstance(got, Got) and got.kind == "execute_reply" and got.parent["msg_id"] == running
        for got in session.got
    )
    assert end_of(await session.finish(running)) == "ok"
    assert text(await session.run("print(ran)")) == "[]\n"


async def test_interrupting_what_is_queued_ends_it_and_nothing_else(agent: AgentProcess) -> None:
    session = await agent.session()
    running = session.execute("import time; ran = []; print('on', flush=True); time.sleep(3)")
    await session.until(lambda message: message.content.get("text") == "on\n")
    queued = session.execute("ran.append(1)")
    await session.run_control()
    await agent.calls("executions.interrupt", id=queued)
    assert end_of(await session.finish(queued)) == "interrupted"
    assert end_of(await session.finish(running)) == "ok"
    assert text(await session.run("print(ran)")) == "[]\n"


async def test_interrupting_the_kernel_ends_what_is_queued(agent: AgentProcess) -> None:
    first = asyncio.create_task(agent.execution("one", code="import time; ran = []; time.sleep(60)"))
    session = await agent.session(after=0)
    await session.until(lambda message: message.content.get("execution_state") == "busy")
    second = asyncio.create_task(agent.execution("two", code="ran.append(1)"))
    while "two" not in [info.id for info in await agent.calls("executions.list")]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await agent.calls("contexts.interrupt", id=agent.context)
    assert [(await one)[1]["end"] for one in (first, second)] == ["interrupted", "interrupted"]
    assert text((await agent.execution("three", code="print(ran)"))[0]) == "[]\n"


WAITS: dict[str, Any] = {
    "a queue": "import asyncio\nawait asyncio.Queue().get()",
    "sleep": "import asyncio\nawait asyncio.sleep(50)",
    "a task": "import asyncio\nawait asyncio.create_task(asyncio.sleep(50))",
    "a thread": "import asyncio, time\nawait asyncio.to_thread(time.sleep, 8)",
    "that will not be cancelled": "import asyncio\nwhile True:\n"
    "    try: await asyncio.sleep(50)\n    except asyncio.CancelledError: pass",
    "a busy task": "import asyncio\nasync def busy():\n    while True: pass\n"
    "await asyncio.create_task(busy())",
    "busy after a wait": "import asyncio\nawait asyncio.sleep(0)\nwhile True: pass",
    "a silent socket": "import socket\na, b = socket.socketpair(); a.recv(1)",
    "a lock": "import threading\nlock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a first deaf ear": "import time\ntry: time.sleep(50)\nexcept KeyboardInterrupt: time.sleep(50)",
}


@pytest.mark.parametrize("code", WAITS.values(), ids=WAITS)
async def test_a_limit_reaches_what_waits_and_variables_survive(agent: AgentProcess, code: str) -> None:
    session = await agent.session()
    await session.run("x = 5")
    assert end_of(await session.run(code, metadata={"llmsafespace": {"timeout": 0.5}})) == "timeout"
    assert text(await session.run("print(x)")) == "5\n"


@pytest.mark.parametrize("name", ["a queue", "sleep", "a task", "a thread", "that will not be cancelled"])
async def test_an_interrupt_reaches_what_waits(agent: AgentProcess, name: str) -> None:
    session = await agent.session()
    await session.run("x = 5")
    running = session.execute("print('on', flush=True)\n" + WAITS[name])
    await session.until(lambda message: message.content.get("text") == "on\n")
    await agent.calls("executions.interrupt", id=running)
    got = await session.finish(running)
    assert (end_of(got), reply(got).content["ename"]) == ("interrupted", "KeyboardInterrupt")
    assert not any("llmsafespace_kernel" in line for line in reply(got).content["traceback"])
    assert text(await session.run("print(x)")) == "5\n"
