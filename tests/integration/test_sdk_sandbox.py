"""The SDK against a real gateway: code, streams, commands, files, contexts, errors."""

from __future__ import annotations

import asyncio
import itertools
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsafespace import (
    AsyncSandbox,
    AuthenticationError,
    FileEvent,
    GatewayUnavailable,
    InvalidRequest,
    NotFound,
    Sandbox,
    SandboxEnded,
    SandboxError,
    WarmPool,
    events,
)
from tests.conftest import Gateway


@pytest.fixture(scope="module", autouse=True)
def environment(gateway: Gateway) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSAFESPACE_API_URL", gateway.url)
        patch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)
        yield


@pytest.fixture(scope="module")
def sandbox(environment: None) -> Iterator[Sandbox]:
    with Sandbox(runtime="python") as made:
        yield made


def test_warm_or_the_reason_why_not(sandbox: Sandbox) -> None:
    assert sandbox.id.startswith("sb-")
    assert sandbox.start.kind == "warm" or sandbox.start.reason
    status = sandbox.status()
    assert status.state == "running"
    assert status.uptime > 0
    assert status.isolation
    assert [info.id for info in Sandbox.list(state="running") if info.id == sandbox.id]


def test_output_results_and_pictures(sandbox: Sandbox) -> None:
    execution = sandbox.run_code(
        "import sys\n"
        "from IPython.display import HTML, display\n"
        "import matplotlib.pyplot as plt\n"
        "print('out'); print('err', file=sys.stderr)\n"
        "display(HTML('<b>bold</b>'))\n"
        "plt.plot([1, 2]); plt.show()\n"
        "6 * 7"
    )
    assert execution.success
    assert execution.stdout == "out\n"
    assert "err\n" in execution.stderr
    assert execution.text == "42"
    assert execution.results[0].html == "<b>bold</b>"
    assert any(result.png for result in execution.results)
    assert execution.execution_count


def test_comms_of_widgets_with_their_buffers(sandbox: Sandbox) -> None:
    code = (
        "from comm import create_comm\n"
        "comm = create_comm(target_name='t', data={'a': 1}, buffers=[b'\\x00\\xff'])\n"
        "comm.send({'b': 2}, buffers=[bytes(3)]); comm.close()"
    )
    heard: list[events.Comm] = []
    execution = sandbox.run_code(code, on_comm=heard.append)
    told = [(comm.action, comm.data, comm.buffers) for comm in execution.comms]
    assert told == [("open", {"a": 1}, (b"\x00\xff",)), ("msg", {"b": 2}, (bytes(3),)), ("close", {}, ())]
    assert heard == execution.comms
    assert len({comm.comm_id for comm in heard}) == 1
    assert heard[0].target == "t"


def test_updated_displays(sandbox: Sandbox) -> None:
    code = "handle = display('old', display_id=True)\nhandle.update('new')"
    assert [result.text for result in sandbox.run_code(code).results] == ["'new'"]


def test_an_exception(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("print('before')\n1 / 0")
    assert (execution.end, execution.exit_code, execution.success) == ("error", 1, False)
    assert execution.error is not None
    assert execution.error.name == "ZeroDivisionError"
    assert "1 / 0" in execution.stderr
    assert execution.stdout == "before\n"


def test_callbacks_are_called_here(sandbox: Sandbox) -> None:
    heard: dict[str, str] = {}  # text may come in pieces
    threads = set()

    def hear(kind: str, text: str) -> None:
        heard[kind] = heard.get(kind, "") + text
        threads.add(threading.current_thread())

    sandbox.run_code(
        "import sys; print('a'); print('b', file=sys.stderr)\ndisplay(1)\n1 / 0",
        on_stdout=lambda text: hear("out", text),
        on_stderr=lambda text: hear("err", text),
        on_result=lambda result: hear("result", result.text),
        on_error=lambda error: hear("error", error.name),
    )
    assert heard == {"err": "b\n", "error": "ZeroDivisionError", "out": "a\n", "result": "1"}
    assert threads == {threading.current_thread()}


def test_standard_input(sandbox: Sandbox) -> None:
    code = "print([input('one '), input('two ')])\ninput()"
    execution = sandbox.run_code(code, stdin="a\nb\n")
    assert "['a', 'b']" in execution.stdout
    assert execution.error is not None
    assert execution.error.name == "EOFError"
    prompts: list[str] = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        return sandbox.files.read("answer").decode()  # the sandbox may be used while it waits

    sandbox.files.write("answer", "yes")
    assert sandbox.run_code("print(input('sure? '))", stdin=answer).stdout.endswith("yes\n")
    assert prompts == ["sure? "]


def test_env_of_one_run_and_of_the_sandbox() -> None:
    with Sandbox(runtime="python", env={"A": "1"}, files={"in.txt": "hello", "b.bin": b"\xff"}) as own:
        code = "import os; print(os.environ.get('A'), os.environ.get('B'))"
        assert own.run_code(code, env={"B": "2"}).stdout == "1 2\n"
        assert own.run_code(code).stdout == "1 None\n"
        assert own.files.read("in.txt") == b"hello"
        assert own.files.read("/workspace/b.bin") == b"\xff"


def test_streams(sandbox: Sandbox) -> None:
    assert "".join(sandbox.stream_code("for i in range(3): print(i)")) == "0\n1\n2\n"
    stream = sandbox.stream_code("print('x')\n1 / 0")
    told = list(stream.events())
    assert [kind for kind, _ in itertools.groupby(event.type for event in told)] == ["stdout", "error", "end"]
    assert stream.execution.end == "error"
    numbers = [event.seq for event in told]
    assert numbers == sorted(set(numbers))


def test_leaving_a_stream_interrupts_it(sandbox: Sandbox) -> None:
    with sandbox.stream_code(
        "import itertools, time\nfor i in itertools.count(): print(i); time.sleep(0.01)"
    ) as out:
        next(out)
    assert sandbox.run_code("'free'", timeout=20).text == "'free'"


def test_a_timeout_is_an_end(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("kept = 1\nwhile True: pass", timeout=0.5)
    assert (execution.end, execution.exit_code) == ("timeout", 1)
    assert execution.error is not None
    assert execution.error.name == "ExecutionTimeout"
    assert sandbox.run_code("kept").text == "1"


def test_interrupt(sandbox: Sandbox) -> None:
    stream = sandbox.stream_code("print('on')\nimport time\nwhile True: time.sleep(0.01)").events()
    assert next(stream).type == "stdout"
    sandbox.interrupt()
    *_, end = stream
    assert isinstance(end, events.End)
    assert end.end == "interrupted"


def test_a_dead_kernel_is_reported_and_restarts(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("import os; print('last words', flush=True); os._exit(3)")
    assert (execution.end, execution.exit_code) == ("kernel_died", 1)
    assert sandbox.contexts.restart().id == sandbox.contexts.default_id()
    assert sandbox.run_code("1 + 1").text == "2"


def test_contexts_and_languages(sandbox: Sandbox) -> None:
    sandbox.run_code("here = 1")
    other = sandbox.contexts.create(cwd="/tmp", env={"WHO": "other"})
    code = "import os; print(os.getcwd(), os.environ['WHO'], 'here' in globals())"
    assert sandbox.run_code(code, context=other).stdout == "/tmp other False\n"
    assert sandbox.run_code("echo $((6 * 7)) ${BASH_VERSION:+bash}", language="sh").stdout == "42 bash\n"
    assert sandbox.run_code("export KEPT=1", language="bash").success
    assert sandbox.run_code("echo $KEPT", language="bash").stdout == "1\n"
    assert {context.language for context in sandbox.contexts.list()} == {"python", "bash"}
    assert sandbox.contexts.remove(other)
    assert not sandbox.contexts.remove(other)


def test_runs_from_many_threads(sandbox: Sandbox) -> None:
    answers: dict[int, str | None] = {}

    def run(number: int) -> None:
        answers[number] = sandbox.run_code(f"{number} * 2").text

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: str(number * 2) for number in range(12)}


def test_attach_follows_from_a_place(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("for i in range(5): print(i, flush=True)")
    again = sandbox.attach(execution.id)
    told = list(again.events())
    assert again.execution.stdout == "0\n1\n2\n3\n4\n"
    assert told[-1].type == "end"
    some = sandbox.attach(execution.id, after=told[0].seq)
    assert again.execution.stdout.endswith("".join(some))
    with pytest.raises(NotFound):
        list(sandbox.attach("nothing"))


def test_commands(sandbox: Sandbox) -> None:
    result = sandbox.run_command("echo out; echo err >&2; exit 3", env={"A": "1"})
    assert (result.stdout, result.stderr, result.exit_code, result.success) == ("out\n", "err\n", 3, False)
    assert sandbox.run_command(["printf", "%s", "a b"]).stdout == "a b"
    assert sandbox.run_command("cat; pwd", stdin="in\n", cwd="/tmp").stdout == "in\n/tmp\n"
    assert sandbox.run_command("sleep 60", timeout=0.5).end == "timeout"
    assert "".join(sandbox.stream_command("echo 1; echo 2")) == "1\n2\n"


def test_background_commands(sandbox: Sandbox) -> None:
    command = sandbox.run_command("read line; echo got $line; exec sleep 60", background=True)
    assert command.running()
    command.send_stdin("it\n")
    assert next(iter(command.stream())) == "got it\n"
    assert command.running()
    assert command.id in [known.id for known in sandbox.commands.list()]
    command.signal("SIGTERM")
    result = command.wait()
    assert (result.exit_code, result.stdout) == (-15, "got it\n")


def test_files(sandbox: Sandbox, tmp_path: Path) -> None:
    local = tmp_path / "data.bin"
    local.write_bytes(bytes(range(256)) * 8192)
    sent: list[int] = []
    info = sandbox.upload_file("deep/er/data.bin", local_path=local, on_progress=sent.append)
    assert (info.path, info.size, info.is_directory) == ("/workspace/deep/er/data.bin", 2**21, False)
    assert sum(sent) == 2**21
    back = sandbox.download_file("deep/er/data.bin", tmp_path / "back.bin")
    assert back == tmp_path / "back.bin"
    assert (tmp_path / "back.bin").read_bytes() == local.read_bytes()
    assert sandbox.download_file("deep/er/data.bin", tmp_path / "deep") == tmp_path / "deep"
    sandbox.files.write("ümläut %.txt", "content")
    assert sandbox.files.read("ümläut %.txt") == b"content"
    sandbox.files.rename("ümläut %.txt", "plain.txt")
    assert "/workspace/plain.txt" in [entry.path for entry in sandbox.list_files()]
    assert sandbox.files.mkdir("folder").is_directory
    with pytest.raises(InvalidRequest):
        sandbox.files.remove("deep")
    sandbox.files.remove("deep", recursive=True)
    with pytest.raises(NotFound):
        sandbox.files.read("deep/er/data.bin")
    with pytest.raises(InvalidRequest):
        sandbox.upload_file("x")
    with sandbox.files.watch() as changes:
        writer = threading.Timer(0.1, sandbox.files.write, ("watched", "1"))
        writer.start()
        assert next(changes) == FileEvent("created", "/workspace/watched")
        writer.join()
    with pytest.raises(NotFound):
        sandbox.download_file("nothing", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_connect_and_the_end() -> None:
    sandbox = Sandbox(runtime="python", metadata={"who": "test"})
    sandbox.run_code("kept = 5")
    with Sandbox.connect(sandbox.id) as again:
        assert again.run_code("kept").text == "5"
        assert again.info.metadata == {"who": "test"}
        again.set_timeout(0.5)
        assert again.run_code("while True: pass").end == "timeout"
    with pytest.raises(SandboxEnded, match="terminated"):
        sandbox.run_code("1")
    assert not sandbox.terminate()
    with pytest.raises(SandboxEnded):
        sandbox.status()
    with pytest.raises(SandboxEnded):
        Sandbox.connect(sandbox.id)


def test_refusals(gateway: Gateway) -> None:
    with pytest.raises(AuthenticationError):
        Sandbox(api_key="lsp_wrong_key")
    with pytest.raises(NotFound):
        Sandbox.connect("sb-nothing")
    with pytest.raises(InvalidRequest, match="security"):
        Sandbox(runtime="python", security_level="none")
    with pytest.raises(SandboxError, match="cobol"):
        Sandbox(runtime="cobol:85")
    with pytest.raises(GatewayUnavailable, match=r"127\.0\.0\.1:1 "):
        Sandbox(api_url="http://127.0.0.1:1")


def test_a_runtime_that_is_not_there_is_warned_of() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Sandbox(runtime="python:3.99") as sandbox:
            assert sandbox.runtime != "python:3.99"
            assert sandbox.warnings
    assert any("3.99" in str(warning.message) for warning in told)


def test_no_runtime_is_the_gateways_default_or_the_pools() -> None:
    with Sandbox() as plain:
        assert plain.runtime.startswith("python:3.")
        assert plain.warnings == []
    pool = WarmPool("shells", runtime="bash", min_size=0)
    try:
        with Sandbox(warm_pool="shells") as shell:
            assert shell.runtime == "bash"
        with pytest.raises(InvalidRequest, match="runtime"):
            Sandbox(runtime="python", warm_pool="shells")
        with pytest.raises(NotFound, match="nothing"):
            Sandbox(warm_pool="nothing")
    finally:
        pool.delete()


async def test_async_twins() -> None:
    async with AsyncSandbox(runtime="python") as sandbox:
        results = await asyncio.gather(*(sandbox.run_code(f"{number}") for number in range(5)))
        assert [result.text for result in results] == ["0", "1", "2", "3", "4"]
        assert [text async for text in sandbox.stream_code("print('x')")] == ["x\n"]
        heard: list[str] = []

        async def hear(text: str) -> None:
            heard.append(text)

        async def answer(prompt: str) -> str:
            return "async"

        await sandbox.run_code("print(input())", on_stdout=hear, stdin=answer)
        assert "".join(heard).endswith("async\n")
        assert (await sandbox.run_command("echo 1")).stdout == "1\n"
        assert (await sandbox.contexts.list())[0].is_default
        started = asyncio.Event()
        code = "print('on', flush=True)\nwhile True: pass"
        running = asyncio.create_task(sandbox.run_code(code, on_stdout=lambda text: started.set()))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await sandbox.run_code("'free'", timeout=20)).text == "'free'"
    async with await AsyncSandbox.create(runtime="bash") as bash:
        assert (await bash.run_code("echo $0 | grep -c .")).stdout == "1\n"


def test_long_output_is_whole(sandbox: Sandbox) -> None:
    execution = sandbox.run_code("import sys\nfor i in range(200): sys.stdout.write('x' * 99_999 + '\\n')")
    assert len(execution.stdout) == 20_000_000
    shown = sandbox.run_code("for i in range(2000): display(i)")
    assert [result.text for result in shown.results] == [str(number) for number in range(2000)]
    assert execution.missed == shown.missed == 0
