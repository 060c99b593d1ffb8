"""Whatever a cell does to its output, it gets its reply, and the kernel lives on."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from llmsafespace_protocol.configuration import KernelKind

STREAMS = {
    "an object": "import sys; sys.stdout = object()",
    "no flush": "import sys\nclass Tee:\n    def write(self, text): pass\nsys.stdout = sys.stderr = Tee()",
    "a failing flush": "import sys\nclass Tee:\n    def flush(self): 1/0\nsys.stdout = sys.stderr = Tee()",
    "deleted": "import sys; del sys.stdout, sys.stderr",
    "none": "import sys; sys.stdout = sys.stderr = None",
    "closed": "import sys; sys.stdout.close(); sys.stderr.close()",
    "a closed file": "import io, sys; sys.stdout = io.StringIO(); sys.stdout.close()",
}


@pytest.mark.parametrize("code", STREAMS.values(), ids=STREAMS)
async def test_streams_that_cannot_be_flushed_cost_no_reply(start: Any, take: Any, code: str) -> None:
    client = await take(await start())
    assert (await client.run("x = 5")).reply["status"] == "ok"
    assert (await client.run(code)).reply["status"] == "ok"
    assert (await client.run("x")).result == "5"
    assert (await client.run("1/0")).reply["ename"] == "ZeroDivisionError"
    await client.ask("kernel_info_request", {}, channel="control")
    await client.ask("complete_request", {"code": "x.", "cursor_pos": 2})


async def test_deleted_streams_are_the_kernels_own_again(start: Any, take: Any) -> None:
    client = await take(await start())
    await client.run("import sys; del sys.stdout")
    assert (await client.run("print(1)")).text() == "1\n"


async def test_half_a_surrogate_is_spelt_out_wherever_it_is_said(start: Any, take: Any) -> None:
    client = await take(await start())
    assert (await client.run(r"print('a\ud83d')")).text() == "a\\ud83d\n"
    raised = await client.run(r"raise ValueError('\udcff')")
    assert raised.reply["ename"] == "ValueError"
    assert raised.reply["evalue"] == raised.of("error")[0]["evalue"] == "\\udcff"
    shown = await client.run(r"print(end=''); type('A', (), {'__repr__': lambda self: '\ud83d'})()")
    assert shown.result == "\\ud83d"
    show = r"display({'a/b': '\ud83d'}, raw=True, metadata={'\udcff': '\ud83d'})"
    code = f"from IPython.display import display; {show}"
    (content,) = (await client.run(code)).of("display_data")
    assert content["data"] == {"a/b": "\\ud83d"}
    assert content["metadata"] == {"\\udcff": "\\ud83d"}


ODD = {
    "its text raises": "class E(Exception):\n    def __str__(self): raise RuntimeError('no text')\nraise E",
    "no JSON in the payload": "get_ipython().payload_manager.write_payload({'source': object(), 'x': 1})",
}


@pytest.mark.parametrize("code", ODD.values(), ids=ODD)
async def test_what_the_kernel_itself_cannot_tell_is_an_error_reply(start: Any, take: Any, code: str) -> None:
    client = await take(await start())
    outcome = await client.run(code)
    assert outcome.reply["status"] == "error"
    assert outcome.reply["ename"] in ("RuntimeError", "ValueError")
    assert (await client.run("2")).result == "2"


@pytest.mark.parametrize("language", ["python", "bash"])
@pytest.mark.parametrize("content", [{}, {"code": None}, {"code": 5}], ids=str)
async def test_a_request_without_code_is_answered(
    start: Any, take: Any, language: str, content: dict[str, Any]
) -> None:
    client = await take(await start(language), language)
    outcome = await client.ask("execute_request", content)
    assert (outcome.reply["status"], outcome.reply["ename"]) == ("error", "TypeError")


async def test_a_kernel_that_is_not_ours_is_made_readable(start: Any, take: Any) -> None:
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client = await take(await start(kinds=[KernelKind(language="python", argv=argv, template=False)]))
    outcome = await client.run(r"print('a\udcff', flush=True); raise ValueError('b\udcff')")
    assert outcome.text() == "a\\udcff\n"
    assert outcome.reply["evalue"] == "b\\udcff"


async def test_sigint_is_handled_as_in_any_python(start: Any, take: Any) -> None:
    client = await take(await start())
    got = await client.run("import signal; signal.getsignal(signal.SIGINT) is signal.default_int_handler")
    assert got.result == "True"


async def test_a_breakpoint_without_anybody_to_ask_goes_on(start: Any, take: Any) -> None:
    client = await take(await start())
    got = await client.run("breakpoint()\nprint('on')")
    assert (got.reply["status"], got.text()) == ("ok", "on\n")
    assert "goes on" in got.text("stderr")
