"""Python kernels: parked, forked and started by exec."""

from __future__ import annotations

import ast
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_agent.kernels.factory import KernelStartError
from llmsafespace_protocol.configuration import KernelKind


async def test_parked_kernel_is_bound_to_env_folder_and_zone(start: Any, take: Any, tmp_path: Path) -> None:
    kernels = await start()
    await kernels.ready()
    client = await take(kernels, env={"WHO": "ann"}, cwd=str(tmp_path), timezone="Asia/Tokyo")
    assert client.kernel.start_kind == "parked"
    code = "import os, time, subprocess\n(os.environ['WHO'], os.getcwd(), time.tzname[0])"
    first = await client.run(code)
    assert ast.literal_eval(first.result) == ("ann", str(tmp_path), "JST")  # IPython breaks long lines
    assert first.reply["execution_count"] == 1
    inherited = await client.run("!echo $WHO; pwd; date +%Z")
    assert inherited.text().split() == ["ann", str(tmp_path), "JST"]


async def test_children_share_neither_env_nor_random_numbers(start: Any, take: Any) -> None:
    kernels = await start(packages=["numpy"], parked=2)
    one = await take(kernels, env={"SECRET": "1"})
    two = await take(kernels)
    assert (await two.run("import os; os.environ.get('SECRET')\n'SECRET' in os.environ")).result == "False"
    draw = "import random, numpy\n(random.random(), numpy.random.rand())"
    drawn = [(await client.run(draw)).result.strip("()").split(", ") for client in (one, two)]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]


async def test_a_preload_scripts_seed_and_names_survive(start: Any, take: Any) -> None:
    script = "import random, numpy as np\nnp.random.seed(42); random.seed(7); table = [1, 2]\nprint('hidden')"
    kernels = await start(scripts={"init-data": script, "broken": "1/0"}, packages=["no_such_package"])
    draw = "import random, numpy\n(random.random(), float(numpy.random.rand()), table)"
    expected = "(0.32383276483316237, 0.3745401188473625, [1, 2])"
    for _ in range(2):
        client = await take(kernels)
        first = await client.run(draw)
        assert first.result == expected
        assert first.text() == ""
    assert [problem.split(":")[0] for problem in kernels.problems] == [
        "preload package no_such_package",
        "preload script broken",
    ]


async def test_threads_left_by_preloading_mean_exec(start: Any, take: Any) -> None:
    script = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    kernels = await start(scripts={"thread": script})
    client = await take(kernels, env={"A": "1"})
    assert "by exec" in kernels.problems[0]
    assert (await client.run("import os, threading\nos.environ['A']")).result == "'1'"


async def test_env_that_cannot_be_bound_late_is_there_from_the_start(
    start: Any, take: Any, tmp_path: Path
) -> None:
    kernels = await start()
    env = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    client = await take(kernels, env=env, cwd=str(tmp_path), timezone="Asia/Tokyo")
    assert client.kernel.start_kind == "exec"
    code = "import os, sys, time\n(sys.flags.hash_randomization, os.getcwd(), time.tzname[0])"
    first = await client.run(code)
    assert first.result == f"(0, '{tmp_path}', 'JST')"
    assert first.reply["execution_count"] == 1


async def test_interrupt_keeps_variables(start: Any, take: Any) -> None:
    client = await take(await start())
    await client.run("x = 5")
    client.begin_run("print('on', flush=True)\nwhile True: pass")
    await client.busy.wait()
    await client.until(lambda outcome: "on" in outcome.text())
    client.kernel.interrupt()
    stopped = await client.end()
    assert stopped.reply["ename"] == "KeyboardInterrupt"
    assert (await client.run("x")).result == "5"


async def test_an_interrupt_while_a_request_is_prepared_never_costs_its_reply(start: Any, take: Any) -> None:
    client = await take(await start())
    for _ in range(40):
        client.begin_run("1")
        await client.busy.wait()
        client.kernel.interrupt()
        outcome = await client.end()
        assert outcome.reply["status"] == "ok" or outcome.reply["ename"] == "KeyboardInterrupt"
    assert (await client.run("2")).result == "2"


@pytest.mark.parametrize(
    ("code", "returncode"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9), ("import os; os._exit(3)", 3)],
)
async def test_death_is_told_after_the_last_message(
    start: Any, take: Any, code: str, returncode: int
) -> None:
    client = await take(await start())
    client.begin_run(f"for i in range(2000): print(i, flush=True)\n{code}")
    outcome = await client.end()
    assert client.exits == [returncode]
    assert not client.kernel.alive
    numbers = outcome.text().split()
    assert numbers == [str(number) for number in range(len(numbers))]
    client.kernel.send("shell", [b"{}", b"{}", b"{}", b"{}"])  # goes nowhere, raises nothing
    assert await client.kernel.shutdown(0) == returncode


@pytest.mark.parametrize(("leave", "returncode"), [("_exit(3)", 3), ("abort()", -6)])
async def test_a_kernel_that_leaves_at_once_has_sent_all_that_it_said(
    start: Any, take: Any, leave: str, returncode: int
) -> None:
    client = await take(await start())
    much = 16 * 2**20  # more than any socket holds
    client.begin_run(f"import os\nprint('x' * {much}, flush=True)\nprint('last', flush=True)\nos.{leave}")
    outcome = await client.end()
    assert client.exits == [returncode]
    assert outcome.text() == "x" * much + "\nlast\n"


async def test_what_a_kernel_started_ends_with_it(start: Any, take: Any) -> None:
    client = await take(await start())
    started = await client.run("import subprocess; subprocess.Popen(['sleep', '600']).pid")
    pid = int(started.result)
    assert await client.kernel.shutdown(0) == -signal.SIGKILL
    await client.until(lambda _: not os.path.exists(f"/proc/{pid}"))


async def test_20_mb_of_stdout_and_20_000_displays_are_complete(start: Any, take: Any) -> None:
    client = await take(await start())
    printed = await client.run("for i in range(200_000): print('x' * 99)")
    assert len(printed.text()) == 20_000_000
    code = "for i in range(20_000): display({'text/plain': str(i)}, raw=True)"
    shown = await client.run(code)
    assert [int(content["data"]["text/plain"]) for content in shown.of("display_data")] == list(range(20_000))


async def test_output_of_commands_is_complete_before_idle(start: Any, take: Any) -> None:
    client = await take(await start())
    for _ in range(5):
        outcome = await client.run("import os; os.system('printf é%.0s $(seq 5000); echo done >&2')")
        assert outcome.text() == "é" * 5000
        assert outcome.text("stderr") == "done\n"
        kinds = [
            (kind, content.get("execution_state"))
            for channel, kind, content in outcome.messages
            if channel == "iopub"
        ]
        assert kinds[-1] == ("status", "idle")


async def test_output_of_forked_processes_arrives(start: Any, take: Any) -> None:
    client = await take(await start())
    await client.run("import os\ndef say(): print('from the fork', flush=True); os._exit(0)")
    client.begin_run("pid = os.fork()\nif not pid: say()\n_ = os.waitpid(pid, 0)")
    await client.until(lambda outcome: "from the fork" in outcome.text())


async def test_env_of_one_cell_is_data_for_that_cell_only(start: Any, take: Any) -> None:
    client = await take(await start(), env={"KEPT": "old"})
    look = "import os\n(os.environ.get('ONCE'), os.environ.get('KEPT'))"
    inside = await client.run(look, env={"ONCE": "'; 1/0 #", "KEPT": "new"})
    assert inside.result == """("'; 1/0 #", 'new')"""
    assert (await client.run(look)).result == "(None, 'old')"


async def test_input_is_asked_on_stdin(start: Any, take: Any) -> None:
    client = await take(await start())
    outcome = await client.run("input('name? ')", stdin="ann")
    assert outcome.of("input_request") == [{"prompt": "name? ", "password": False}]
    assert outcome.result == "'ann'"


async def test_comms_carry_binary_buffers_both_ways(start: Any, take: Any) -> None:
    client = await take(await start())
    await client.run(
        "from comm import get_comm_manager\n"
        "def opened(comm, message):\n"
        "    turn = lambda m: [bytes(b)[::-1] for b in m['buffers']]\n"
        "    comm.on_msg(lambda m: comm.send({}, buffers=turn(m)))\n"
        "get_comm_manager().register_target('echo', opened)"
    )
    await client.ask("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {}})
    info = await client.ask("comm_info_request", {"target_name": "echo"})
    assert info.reply["comms"] == {"c1": {"target_name": "echo"}}
    client.begin("comm_msg", {"comm_id": "c1", "data": {}}, buffers=[b"\x00\x01", b"abc" * 1000])
    outcome = await client.end()
    assert outcome.buffers == [b"\x01\x00", b"cba" * 1000]


async def test_the_stock_requests_answer(start: Any, take: Any) -> None:
    client = await take(await start())
    info = await client.ask("kernel_info_request", {})
    assert info.reply["language_info"]["name"] == "python"
    assert info.reply["status"] == "ok"
    await client.run("alphabet = 1")
    completed = await client.ask("complete_request", {"code": "alpha", "cursor_pos": 5})
    assert "alphabet" in completed.reply["matches"]
    inspected = await client.ask("inspect_request", {"code": "len", "cursor_pos": 3, "detail_level": 0})
    assert inspected.reply["found"]
    checked = await client.ask("is_complete_request", {"code": "for x in y:"})
    assert checked.reply["status"] == "incomplete"
    history = await client.ask(
        "history_request", {"hist_access_type": "tail", "output": False, "raw": True, "n": 1}
    )
    assert history.reply["status"] == "ok"
    subshell = await client.ask("create_subshell_request", {}, channel="control")
    assert subshell.reply["status"] == "ok"


async def test_matplotlib_is_inline_without_being_asked(start: Any, take: Any) -> None:
    pytest.importorskip("matplotlib")
    client = await take(await start())
    assert (await client.run("import sys; 'matplotlib' in sys.modules")).result == "False"
    outcome = await client.run("import matplotlib.pyplot as plt; plt.plot([1, 2])")
    assert "image/png" in outcome.of("display_data")[0]["data"]


async def test_a_kernel_of_another_maker_starts_by_its_argv(start: Any, take: Any, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernels = await start(kinds=[KernelKind(language="other", argv=argv, interrupt_mode="message")])
    client = await take(kernels, env={"A": "1"}, cwd=str(tmp_path))
    outcome = await client.run("import os\n(os.environ['A'], os.getcwd())")
    assert outcome.result == f"('1', '{tmp_path}')"
    assert await client.kernel.shutdown(10) == 0


async def test_what_cannot_start_says_why(start: Any, take: Any, tmp_path: Path) -> None:
    kernels = await start(kinds=[KernelKind(language="none", argv=["/no/such/program", "{connection_file}"])])
    with pytest.raises(KernelStartError, match="/no/such/program"):
        await take(kernels)
    with pytest.raises(ValueError, match="no ruby kernel"):
        await take(kernels, "ruby")
    with pytest.raises(ValueError, match="does not exist"):
        await take(kernels, cwd=str(tmp_path / "missing"))


async def test_close_leaves_nothing_behind(start: Any, take: Any, tmp_path: Path) -> None:
    kernels = await start(parked=2)
    await kernels.ready()
    client = await take(kernels)
    await client.kernel.shutdown(5)
    await kernels.close()
    assert list((tmp_path / "r").iterdir()) == []
