"""Commands and package installations."""

from __future__ import annotations

import json
import os
import signal
import uuid
from typing import Any

import pytest

from .conftest import Refused, frame


async def follow(agent: Any, command: str, after: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A command's output and gaps to its end, and its account."""
    stream, _ = await agent.open("command", command=command, after=after)
    got: list[dict[str, Any]] = []
    while True:
        one = json.loads((await frame(stream))[1])
        if "startedAt" in one:
            return got, one
        got.append(one)


async def run(agent: Any, **wish: Any) -> tuple[str, str, dict[str, Any]]:
    command = uuid.uuid4().hex
    await agent.calls("commands.start", id=command, **wish)
    got, info = await follow(agent, command)
    out = "".join(one["text"] for one in got if one["stream"] == "stdout")
    return out, "".join(one["text"] for one in got if one["stream"] == "stderr"), info


async def test_shell_line_and_program(agent: Any) -> None:
    out, err, info = await run(
        agent, command="echo é; pwd; echo $A $HOME; echo no >&2; exit 3", env={"A": "1 2"}
    )
    assert out == f"é\n{agent.workspace}\n1 2 {agent.folder}\n"
    assert err == "no\n"
    assert (info["exitCode"], info["end"]) == (3, "error")
    out, _, info = await run(agent, argv=["printf", "%s", "$A;x"], cwd="made")
    assert (out, info["exitCode"], info["end"]) == ("$A;x", 0, "ok")
    assert (agent.workspace / "made").is_dir()
    assert "running" in info


async def test_same_id_runs_once(agent: Any) -> None:
    wish = {"id": "c", "command": "echo x >> log; cat log"}
    for _ in range(3):
        await agent.calls("commands.start", **wish)
    got, _ = await follow(agent, "c")
    assert "".join(one["text"] for one in got) == "x\n"
    assert (await follow(agent, "c", after=got[0]["seq"]))[0] == got[1:]
    with pytest.raises(Refused) as caught:
        await agent.calls("commands.start", id="c", command="other")
    assert caught.value.error.code == "conflict"
    with pytest.raises(Refused) as caught:
        await follow(agent, "c", after=99)
    assert caught.value.error.code == "conflict"


async def test_standard_input(agent: Any) -> None:
    out, _, info = await run(agent, command="cat", stdin="given")
    assert (out, info["end"]) == ("given", "ok")
    with pytest.raises(Refused):
        await agent.calls("commands.stdin", id="unknown", data="x")
    await agent.calls("commands.start", id="k2", command="cat", keepStdin=True)
    await agent.calls("commands.stdin", id="k2", data="a\n")
    await agent.calls("commands.stdin", id="k2", data="b\n", eof=True)
    got, info = await follow(agent, "k2")
    assert "".join(one["text"] for one in got) == "a\nb\n"
    with pytest.raises(Refused) as caught:
        await agent.calls("commands.stdin", id="k2", data="c")
    assert caught.value.error.code == "conflict"


async def test_much_output_is_whole_or_a_counted_gap(agent: Any) -> None:
    out, _, _ = await run(agent, command="seq 1 300000")
    assert out == "".join(f"{i}\n" for i in range(1, 300_001))


async def test_timeout_ends_the_whole_tree(agent: Any) -> None:
    line = "trap '' TERM; setsid sleep 1000 & echo $!; sleep 1000"
    out, _, info = await run(agent, command=line, timeout=0.3)
    assert info["end"] == "timeout"
    assert info["exitCode"] < 0
    child = int(out)
    while True:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        await agent.calls("status")


async def test_signals(agent: Any) -> None:
    await agent.calls("commands.start", id="s", command="echo on; exec sleep 1000")
    stream, _ = await agent.open("command", command="s")
    assert b"on" in (await frame(stream))[1]
    assert (await agent.calls("commands.get", id="s")).running
    await agent.calls("commands.signal", id="s", signal="SIGINT")
    _, info = await follow(agent, "s")
    assert (info["exitCode"], info["end"]) == (-signal.SIGINT, "interrupted")
    with pytest.raises(Refused) as caught:
        await agent.calls("commands.signal", id="s", signal="SIGNONE")
    assert caught.value.error.code == "invalid_request"


async def test_background_children_live_on(agent: Any) -> None:
    out, _, info = await run(agent, command="(sleep 0.2; echo late; echo kept > late) & echo now")
    assert out.startswith("now")
    assert info["end"] == "ok"
    while not (agent.workspace / "late").exists():
        await agent.calls("status")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"command": "a", "argv": ["b"]},
        {"argv": []},
        {"argv": ["/no/such/program"]},
        {"command": "a\0b"},
        {"command": "a", "cwd": "/nowhere"},
        {"command": "a", "timeout": 0},
        {"command": "a", "env": {"": "x"}},
        {"id": "../x", "command": "a"},
        {"command": 5},
    ],
)
async def test_bad_commands_are_refused(launch: Any, wrong: Any) -> None:
    agent = await launch(parked=0)
    rpc = await agent.rpc()
    await agent.bind(rpc, language="bash")
    with pytest.raises(Refused) as caught:
        await rpc("commands.start", **{"id": "x", **wrong})
    assert caught.value.error.code == "invalid_request"
    assert await rpc("commands.list") == []


async def test_bad_packages_are_refused(agent: Any) -> None:
    for wrong in ([], ["--index-url=http://x"], [" "], ["a\0"], ["a"] * 300):
        with pytest.raises(Refused) as caught:
            await agent.calls("packages.install", id="p", packages=wrong)
        assert caught.value.error.code == "invalid_request"
    with pytest.raises(Refused):
        await agent.calls("packages.install", id="p", packages=["a"], manager="apt")


async def test_commands_end_with_the_sandbox(agent: Any) -> None:
    await agent.calls("commands.start", id="c", command="echo $$; exec sleep 1000")
    pid = (await agent.calls("commands.get", id="c")).pid
    await agent.calls("shutdown")
    assert await agent.exited() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_memory_ends_the_command_that_uses_most(launch: Any) -> None:
    agent = await launch(limits={"memoryBytes": 400 * 1024**2}, parked=0)
    agent.calls = await agent.rpc()
    await agent.bind(agent.calls)
    code = "import time\nh=[]\nwhile True: h.append(bytearray(b'x'*5000000)); time.sleep(0.005)"
    _, _, info = await run(agent, argv=["python3", "-c", code])
    assert info["end"] == "oom"
    assert (await agent.calls("contexts.get", id=agent.context)).state == "idle"
