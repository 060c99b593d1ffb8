"""Executions on real kernels: durable ids, replay, honest ends."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_protocol.frames import FrameKind

from .conftest import Got, Refused, end_of, is_over, reply, text

SPIN = "import time\nprint('on', flush=True)\nwhile True:\n    time.sleep(0.01)"
DEAF = (
    "import time\nprint('on', flush=True)\nwhile True:\n"
    "    try:\n        time.sleep(1)\n    except BaseException:\n        pass"
)


def running(got: Got) -> bool:
    return got.kind == "stream" and "on" in got.content["text"]


async def test_result_and_output_arrive_in_order(agent: Any) -> None:
    session = await agent.session()
    got = await session.run("print('hi'); 1 + 1")
    assert text(got) == "hi\n"
    assert [one.content["data"]["text/plain"] for one in got if one.kind == "execute_result"] == ["2"]
    assert [one.seq for one in got] == sorted(one.seq for one in got)
    assert end_of(got) == "ok"
    assert "llmsafespace" not in reply(got).metadata


async def test_replies_go_to_the_session_that_asked(agent: Any) -> None:
    one, other = await agent.session(), await agent.session()
    await one.run("print('a')")
    mine = await other.run("print('b')")
    assert text(mine) == "b\n"
    seen = [got for got in other.got if isinstance(got, Got)]
    assert "a\n" in text(seen)
    assert len([got for got in seen if got.kind == "execute_reply"]) == 1


async def test_client_that_signs_with_another_session_gets_its_replies(agent: Any) -> None:
    session = await agent.session()
    assert end_of(await session.run("1", session="another-name")) == "ok"


async def test_same_id_and_content_runs_once_and_replays(agent: Any) -> None:
    code = "n = globals().get('n', 0) + 1; print(n)"
    first = await agent.session(durable=True)
    execution = uuid.uuid4().hex
    got = await first.run(code, msg_id=execution)
    assert text(got) == "1\n"
    again = await first.run(code, msg_id=execution)
    assert [one.seq for one in again] == [one.seq for one in got]
    second = await agent.session(durable=True)
    elsewhere = await second.run(code, msg_id=execution)
    assert [one.seq for one in elsewhere] == [one.seq for one in got]
    assert text(await second.run("print(n)")) == "1\n"


async def test_same_id_with_other_content_is_a_conflict(agent: Any) -> None:
    session = await agent.session(durable=True)
    execution = uuid.uuid4().hex
    await session.run("1", msg_id=execution)
    session.execute("2", msg_id=execution)
    refusal = await session.next()
    assert isinstance(refusal, dict)
    assert refusal["code"] == "conflict"
    with pytest.raises(Refused) as caught:
        await agent.execution(execution, code="3")
    assert caught.value.error.code == "conflict"


async def test_plain_clients_may_repeat_an_id(agent: Any) -> None:
    session = await agent.session()
    code = "n = globals().get('n', 0) + 1; print(n)"
    execution = uuid.uuid4().hex
    assert text(await session.run(code, msg_id=execution)) == "1\n"
    assert text(await session.run(code, msg_id=execution)) == "2\n"


async def test_execution_stream_runs_follows_and_ends(agent: Any) -> None:
    execution = uuid.uuid4().hex
    got, info = await agent.execution(execution, code="print('x'); 6 * 7")
    assert text(got) == "x\n"
    assert is_over(got)
    assert info["end"] == "ok"
    assert (info["first"], info["last"]) == (got[0].seq, got[-1].seq)
    again, account = await agent.execution(execution, code="print('x'); 6 * 7")
    assert again == got
    assert account == info
    rest, _ = await agent.execution(execution, after=got[2].seq)
    assert rest == got[3:]
    with pytest.raises(Refused) as caught:
        await agent.execution("unknown")
    assert caught.value.error.code == "not_found"


async def test_two_starts_of_one_id_at_once_run_once(agent: Any) -> None:
    execution = uuid.uuid4().hex
    code = "n = globals().get('n', 0) + 1; print(n)"
    results = await asyncio.gather(*(agent.execution(execution, code=code) for _ in range(5)))
    assert all(result == results[0] for result in results)
    assert text(results[0][0]) == "1\n"


async def test_execution_takes_stdin_line_by_line_and_env(agent: Any) -> None:
    code = (
        "import os\nprint(input() + '|' + input(), os.environ['ONCE'])\n"
        "try:\n    input()\nexcept EOFError:\n    print('eof')"
    )
    got, info = await agent.execution(uuid.uuid4().hex, code=code, stdin="one\ntwo\n", env={"ONCE": "x"})
    assert text(got).endswith("one|two x\neof\n")
    assert info["end"] == "ok"
    got, info = await agent.execution(uuid.uuid4().hex, code="import os; print('ONCE' in os.environ)")
    assert text(got) == "False\n"
    got, info = await agent.execution(uuid.uuid4().hex, code="input()")
    assert info["end"] == "error"


async def test_failure_is_an_error_and_aborts_what_is_queued(agent: Any) -> None:
    session = await agent.session()
    first = session.execute("import time; time.sleep(0.2); 1 / 0")
    second = session.execute("1")
    got = await session.finish(first)
    assert end_of(got) == "error"
    assert reply(got).content["ename"] == "ZeroDivisionError"
    replies = [one for one in session.got if isinstance(one, Got) and one.parent.get("msg_id") == second]
    while not is_over(replies):
        one = await session.message()
        if one.parent.get("msg_id") == second:
            replies.append(one)
    assert end_of(replies) == "aborted"
    assert (await agent.calls("executions.get", id=second)).end == "aborted"


async def test_disconnected_client_goes_on_where_it_was(agent: Any) -> None:
    first = await agent.session("s1")
    execution = first.execute("import time\nfor i in range(50):\n    print(i, flush=True); time.sleep(0.005)")
    await first.until(lambda got: "10\n" in text([got]))
    seen = [got for got in first.got if isinstance(got, Got)]
    first.ack(seen[-1].seq)
    await first.run_control()
    first.stream.abort()
    second = await agent.session("s1")
    rest: list[Got] = []
    while not is_over([got for got in rest if got.parent.get("msg_id") == execution]):
        rest.append(await second.message())
    assert [got.seq for got in rest[:1]] == [seen[-1].seq + 1]
    printed = text([got for got in seen + rest if got.parent.get("msg_id") == execution])
    assert printed == "".join(f"{i}\n" for i in range(50))


async def test_new_session_starts_live_and_after_must_exist(agent: Any) -> None:
    first = await agent.session()
    await first.run("1")
    second = await agent.session()
    assert second.head >= 5
    got = await second.run("2")
    assert got[0].seq > second.head
    whole = await agent.session(after=0)
    assert (await whole.message()).seq == 1
    with pytest.raises(Refused) as caught:
        await agent.session(after=10_000)
    assert caught.value.error.code == "conflict"
    assert "head" in caught.value.error.details


async def test_timeout_ends_with_its_own_word_and_keeps_variables(agent: Any) -> None:
    execution = uuid.uuid4().hex
    got, info = await agent.execution(execution, code="kept = 5\n" + SPIN, timeout=0.3)
    assert info["end"] == "timeout"
    assert end_of(got) == "timeout"
    assert reply(got).content["ename"] == "ExecutionTimeout"
    got, _ = await agent.execution(uuid.uuid4().hex, code="print(kept)")
    assert text(got) == "5\n"


async def test_deaf_execution_is_killed_at_its_timeout(agent: Any) -> None:
    session = await agent.session()
    got, info = await agent.execution(uuid.uuid4().hex, code=DEAF, timeout=0.2)
    assert info["end"] == "timeout"
    assert reply(got).content["ename"] == "ExecutionTimeout"
    await session.until(lambda one: one.kind == "status" and one.content["execution_state"] == "dead")
    assert (await agent.calls("contexts.get", id=agent.context)).state == "dead"


async def test_interrupt_is_told_as_one(agent: Any) -> None:
    session = await agent.session()
    execution = session.execute("kept = 6\n" + SPIN)
    await session.until(running)
    await agent.calls("contexts.interrupt", id=agent.context)
    got = await session.finish(execution)
    assert end_of(got) == "interrupted"
    assert reply(got).content["ename"] == "KeyboardInterrupt"
    assert text(await session.run("print(kept)")) == "6\n"
    own = await session.run("raise KeyboardInterrupt")
    assert end_of(own) == "error"


async def test_queued_execution_can_be_interrupted(agent: Any) -> None:
    session = await agent.session(durable=True)
    first = session.execute(SPIN, stop_on_error=False)
    await session.until(running)
    second = session.execute(SPIN, stop_on_error=False)
    await session.run_control()
    await agent.calls("executions.interrupt", id=second)
    await agent.calls("executions.interrupt", id=first)
    ends = [end_of(messages) for messages in await session.finish_all([first, second])]
    assert ends == ["interrupted", "interrupted"]


async def test_kernel_death_ends_everything_and_is_told(agent: Any) -> None:
    session = await agent.session()
    first = session.execute(
        "import os, time; print('on', flush=True); time.sleep(0.2); os.kill(os.getpid(), 9)"
    )
    second = session.execute("1")
    got: dict[str, list[Got]] = {first: [], second: []}
    dead = None
    while dead is None:
        one = await session.message()
        got.get(one.parent.get("msg_id", ""), []).append(one)
        if one.kind == "status" and one.content["execution_state"] == "dead":
            dead = one
    assert dead.parent == {}
    for execution in (first, second):
        assert is_over(got[execution])
        assert end_of(got[execution]) == "kernel_died"
        assert reply(got[execution]).content["ename"] == "KernelDied"
    info = await agent.calls("contexts.get", id=agent.context)
    assert (info.state, info.end) == ("dead", "kernel_died")


async def test_dead_kernel_answers_at_once_and_restart_revives_it(agent: Any) -> None:
    session = await agent.session()
    await session.run("x = 1; import os; os._exit(3)")
    await session.until(lambda got: got.kind == "status" and got.content["execution_state"] == "dead")
    assert end_of(await session.run("1")) == "kernel_died"
    session.send("shell", "kernel_info_request", {})
    answer = await session.until(lambda got: got.kind == "kernel_info_reply")
    assert answer.content["status"] == "error"
    with pytest.raises(Refused):
        await agent.calls("contexts.interrupt", id=agent.context)
    await agent.calls("contexts.restart", id=agent.context)
    assert text(await session.run("print('x' in globals())")) == "False\n"


async def test_memory_ends_the_kernel_with_its_word(launch: Any) -> None:
    agent = await launch(limits={"memoryBytes": 400 * 1024**2}, parked=0)
    await agent.bind(await agent.rpc())
    code = (
        "import time\nhog = []\nwhile True:\n    hog.append(bytearray(b'x' * 5_000_000)); time.sleep(0.005)"
    )
    got, info = await agent.execution(uuid.uuid4().hex, code=code)
    assert info["end"] == "oom"
    assert reply(got).content["ename"] == "OutOfMemory"
    rpc = await agent.rpc()
    assert (await rpc("contexts.get", id=agent.context)).end == "oom"


async def test_stopped_reader_gets_everything_and_slows_nobody(agent: Any) -> None:
    stopped = await agent.session(durable=True)
    stopped.stream.hold()
    code = "for i in range(200):\n    display({'text/plain': 'x' * 50_000}, raw=True)"
    got, info = await agent.execution(uuid.uuid4().hex, code="from IPython.display import display\n" + code)
    assert len([one for one in got if one.kind == "display_data"]) == 200
    assert info["end"] == "ok"
    seen: list[Got] = []
    while not seen or seen[-1].content.get("execution_state") != "idle":  # the reply is for another session
        seen.append(await stopped.message())
    assert len([one for one in seen if one.kind == "display_data"]) == 200


async def test_what_no_quota_can_hold_is_a_counted_gap(launch: Any) -> None:
    agent = await launch(journalMemory=256 * 1024, journalDisk=1024 * 1024)
    await agent.bind(await agent.rpc())
    stopped = await agent.session(durable=True)
    stopped.stream.hold()
    code = (
        "from IPython.display import display\n"
        "for i in range(400):\n    display({'text/plain': 'x' * 20_000}, raw=True)"
    )
    await agent.execution(uuid.uuid4().hex, code=code)
    seq, missed, idle = stopped.head, 0, False
    while not idle:  # the reply, which may come after it, is for another session
        one = await stopped.next()
        if isinstance(one, dict):
            assert one["resume"] == seq + 1 + one["gap"]
            missed += one["gap"]
            seq = one["resume"] - 1
        else:
            assert one.seq > seq
            seq = one.seq
            idle = one.content.get("execution_state") == "idle"
    assert missed > 100


async def test_bad_messages_are_refused_and_the_stream_goes_on(agent: Any) -> None:
    session = await agent.session()
    session.stream.send(FrameKind.KERNEL, b"rubbish")
    session.stream.send(FrameKind.JSON, b'{"ack": "x"}')
    session.stream.send(FrameKind.DATA, b"x")
    session.send("iopub", "status", {})
    session.send("shell", "execute_request", {"code": 5})
    session.execute("1", metadata={"llmsafespace": {"timeout": -1}})
    session.execute("1", metadata={"llmsafespace": {"env": {"a=b": "c"}}})
    refusals: list[Any] = []
    while len(refusals) < 7:
        got = await session.next()
        if isinstance(got, dict):
            refusals.append(got["code"])
    assert set(refusals) == {"invalid_request"}
    replies = [got.content["ename"] for got in session.got if getattr(got, "kind", "") == "execute_reply"]
    assert replies == ["InvalidRequest"] * 3
    assert end_of(await session.run("1")) == "ok"


async def test_everything_ends_with_the_sandbox(agent: Any) -> None:
    session = await agent.session()
    execution = session.execute(SPIN)
    await session.until(running)
    await agent.calls("shutdown", end="expired")
    got = await session.finish(execution)
    assert end_of(got) == "expired"
    assert reply(got).content["ename"] == "SandboxExpired"
    await session.until(lambda one: one.kind == "status" and one.content["execution_state"] == "dead")
    assert await agent.exited() == 10


async def test_binary_buffers_and_stdin_pass(agent: Any) -> None:
    session = await agent.session()
    execution = session.execute("input('name? ')", allow_stdin=True)
    asked = await session.until(lambda got: got.kind == "input_request")
    assert asked.content["prompt"] == "name? "
    session.send("stdin", "input_reply", {"value": "ann"})
    got = await session.finish(execution)
    assert [one.content["data"]["text/plain"] for one in got if one.kind == "execute_result"] == ["'ann'"]


async def test_other_languages_have_contexts_of_their_own(agent: Any) -> None:
    got, info = await agent.execution(uuid.uuid4().hex, code="echo $BASH_VERSION | cut -c1", language="bash")
    assert info["end"] == "ok"
    assert text(got).strip().isdigit()
    assert info["context"] != agent.context
    _, again = await agent.execution(uuid.uuid4().hex, code="true", language="bash")
    assert again["context"] == info["context"]
    with pytest.raises(Refused) as caught:
        await agent.execution(uuid.uuid4().hex, code="1", language="cobol")
    assert caught.value.error.code == "invalid_request"


async def test_installation_holds_executions_back(launch: Any) -> None:
    script = "import sys, time; time.sleep(0.5); open('installed', 'w').write(' '.join(sys.argv[1:]))"
    agent = await launch(packageManager=[sys.executable, "-c", script])
    rpc = await agent.rpc()
    await agent.bind(rpc)
    await rpc("packages.install", id="p1", packages=["left", "right"], gate=True)
    got, _ = await agent.execution(uuid.uuid4().hex, code="print(open('installed').read())")
    assert text(got) == "left right\n"
    assert Path(agent.workspace, "installed").exists()


FORGED = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
kernel = get_ipython().kernel
parent = kernel.get_parent("shell")
content = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
kernel.session.send(
    kernel.shell_stream, "execute_reply", content, parent=parent, ident=kernel._parent_ident["shell"]
)
while True: pass
"""


async def test_a_forged_reply_does_not_end_the_time_limit(agent: Any) -> None:
    """Code can say in its kernel's name that it is done; it is killed at its limit all the same."""
    got, info = await agent.execution(uuid.uuid4().hex, code=FORGED, timeout=0.5)
    assert reply(got).content["status"] == "ok"
    assert info["end"] == "timeout"
    rpc = await agent.rpc()
    (context,) = await rpc("contexts.list")
    assert context.state == "dead"


async def test_an_interrupt_from_the_queue_does_not_end_the_time_limit(agent: Any) -> None:
    """One that was interrupted before it began, and ignores that, is killed at its limit."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    waiting = asyncio.ensure_future(agent.execution(first, code="import time; time.sleep(1)"))
    await asyncio.sleep(0.3)
    deaf = asyncio.ensure_future(agent.execution(second, code=DEAF, timeout=4))
    rpc = await agent.rpc()
    while not [one for one in await rpc("executions.list") if one.id == second]:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await rpc("executions.interrupt", id=second)
    await waiting
    _, info = await deaf
    assert info["end"] in ("timeout", "interrupted")
