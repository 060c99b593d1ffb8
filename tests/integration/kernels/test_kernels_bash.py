"""The Bash kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio


@pytest_asyncio.fixture
async def bash(start: Any, take: Any, tmp_path: Path) -> Any:
    return await take(await start("bash"), env={"WHO": "ann"}, cwd=str(tmp_path))


async def test_folder_and_variables_stay_and_streams_are_apart(bash: Any, tmp_path: Path) -> None:
    first = await bash.run("echo $WHO; pwd; echo wrong >&2; mkdir sub; cd sub; x=5; f() { echo f$1; }")
    assert first.text() == f"ann\n{tmp_path}\n"
    assert first.text("stderr") == "wrong\n"
    assert first.reply["status"] == "ok"
    assert first.reply["execution_count"] == 1
    second = await bash.run("pwd; f $x; read line; echo [$line]")
    assert second.text() == f"{tmp_path}/sub\nf5\n[]\n"


async def test_exit_status_decides(bash: Any) -> None:
    failed = await bash.run("false")
    assert (failed.reply["ename"], failed.reply["evalue"]) == ("ExitStatus", "1")
    assert failed.of("error")[0]["evalue"] == "1"
    ended = await bash.run("exit 3")
    assert ended.reply["evalue"] == "3"
    assert (await bash.run("echo again $WHO")).text() == "again ann\n"
    unfinished = await bash.run("if true; then")
    assert unfinished.reply["status"] == "error"
    assert "syntax error" in unfinished.text("stderr")


async def test_interrupt_keeps_the_shell(bash: Any) -> None:
    bash.begin_run("x=7; f() { while true; do sleep 0.1; done; }; echo on; f; echo never")
    await bash.until(lambda outcome: "on" in outcome.text())
    bash.kernel.interrupt()
    stopped = await bash.end()
    assert stopped.reply["ename"] == "KeyboardInterrupt"
    assert "never" not in stopped.text()
    assert (await bash.run("echo $x")).text() == "7\n"


async def test_env_of_one_cell(bash: Any) -> None:
    inside = await bash.run("echo $WHO $ONCE; sh -c 'echo $ONCE'", env={"WHO": "bob", "ONCE": "$(id)'; x"})
    assert inside.text() == "bob $(id)'; x\n$(id)'; x\n"
    assert (
        await bash.run("echo $WHO ${ONCE-unset}; env | grep -c __llmsafespace")
    ).text() == "ann unset\n0\n"


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("-x", ["++ echo a\na\n", "++ echo b\nb\n", "++ set +x\n"]),
        ("-v", ["a\n", "echo b\nb\n", "set +v\n"]),
    ],
)
async def test_tracing_shows_the_cell_alone(bash: Any, option: str, shown: list[str]) -> None:
    cells = [f"set {option}; echo a", "echo b", f"set +{option[1]}"]
    assert [
        (await bash.run(f"exec 2>&1; {cells[0]}")).text(),
        *[(await bash.run(c)).text() for c in cells[1:]],
    ] == shown
    assert (await bash.run("echo quiet")).text() == "quiet\n"


async def test_history_has_the_cells_alone(bash: Any) -> None:
    await bash.run("echo one")
    assert (await bash.run("history")).text() == "    1  echo one\n    2  history\n"
    await bash.run("set -o history")
    last = (await bash.run("history | tail -1")).text()
    assert last == "    4  history | tail -1\n"


@pytest.mark.parametrize(
    "cell",
    [
        "printf() { echo mine; }",
        "eval() { echo mine; }; set() { :; }; unset() { :; }; export() { :; }; exit() { :; }",
        "builtin() { :; }; command() { :; }; history() { echo mine; }; [() { :; }",
        "alias eval=false set=false unset=false export=false history=false",
        "trap 'n=1' DEBUG; trap 'n=2' ERR; set -T",
        "set -u; set -f; set -C; IFS=x",
        "set -o posix",
        "PS4='> '; PS1='$ '; PROMPT_COMMAND='echo prompt' PS0=now",
        "exec 3>&- 4>&-; enable -n printf history",
    ],
)
async def test_what_a_cell_redefines_is_the_cells_alone(bash: Any, cell: str) -> None:
    assert (await bash.run(cell)).reply["status"] == "ok"
    seen = await bash.run("echo out; false")
    assert (seen.text(), seen.text("stderr")) == ("out\n", "")
    assert (await bash.run("echo $? ${ONCE-}", env={"ONCE": "1"})).text() == "1 1\n"
    assert (await bash.run("echo ${ONCE-unset}")).text() == "unset\n"
    completed = await bash.ask("complete_request", {"code": "echo $HOM", "cursor_pos": 9})
    assert completed.reply["matches"] == ["$HOME"]


async def test_a_cell_that_closes_every_descriptor_ends_the_shell(bash: Any) -> None:
    closed = await bash.run('for each in {3..255}; do eval "exec $each>&-"; done; echo closed')
    assert closed.reply["ename"] == "ExitStatus"
    assert (await bash.run("echo again")).text() == "again\n"


async def test_the_machinery_is_not_to_be_seen(bash: Any) -> None:
    seen = await bash.run("declare -p; declare -F; alias; trap; env", env={"ONCE": "1"})
    assert [line for line in seen.text().splitlines() if "llmsafespace_" in line and "_0=" not in line] == []


async def test_much_output_is_complete(bash: Any) -> None:
    outcome = await bash.run("seq 1000000; echo é >&2")
    assert outcome.text() == "".join(f"{number}\n" for number in range(1, 1_000_001))
    assert outcome.text("stderr") == "é\n"


async def test_completion_inspection_and_completeness(bash: Any) -> None:
    await bash.run("alphabet=1; touch some_file.txt")
    completed = await bash.ask("complete_request", {"code": "echo $alphab", "cursor_pos": 12})
    assert completed.reply["matches"] == ["$alphabet"]
    files = await bash.ask("complete_request", {"code": "cat some_", "cursor_pos": 9})
    assert files.reply["matches"] == ["some_file.txt"]
    commands = await bash.ask("complete_request", {"code": "ech", "cursor_pos": 3})
    assert "echo" in commands.reply["matches"]
    inspected = await bash.ask("inspect_request", {"code": "echo x", "cursor_pos": 2, "detail_level": 0})
    assert "builtin" in inspected.reply["data"]["text/plain"]
    for code, status in (("if true; then", "incomplete"), ("echo x", "complete"), ("fi", "invalid")):
        assert (await bash.ask("is_complete_request", {"code": code})).reply["status"] == status
    info = await bash.ask("kernel_info_request", {})
    assert info.reply["language_info"]["name"] == "bash"


async def test_shutdown_is_clean(bash: Any) -> None:
    await bash.run("sleep 600 & echo")
    assert await bash.kernel.shutdown(10) == 0
