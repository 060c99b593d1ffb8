"""Much output: every byte arrives, in messages of bounded size, and neither kernel nor agent grows by it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024
KERNEL_MAY_GROW = 48 * MIB  # the queue towards the agent, and what the allocator keeps


class Tap:
    """Counts a kernel's output as it comes, and keeps none of it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.size = {"stdout": 0, "stderr": 0}
        self.largest = 0
        self.others: list[str] = []
        client.kernel.on_message = self._on_message

    def _on_message(self, channel: str, parts: list[bytes]) -> None:
        kind = json.loads(parts[0])["msg_type"]
        if kind != "stream":
            self.others.append(kind)
            self.client._on_message(channel, parts)
            return
        content = json.loads(parts[3].decode())  # strictly UTF-8
        self.size[content["name"]] += len(content["text"].encode())
        self.largest = max(self.largest, sum(map(len, parts)))


def peak(pid: int) -> int:
    """The most memory that a process has had since `forget_peak`, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak(pid: int) -> int:
    """Begin to measure; returns the memory of now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


LOUD = {
    "lines": ("for i in range({n} * 8): print('x' * 131071)", "stdout"),
    "short lines": ("for i in range({n} * 1024 * 8): print('y' * 127)", "stdout"),
    "one string": ("for i in range({n} // 40): print('z' * (40 * 1024 * 1024 - 1))", "stdout"),
    "written at once": ("import sys\nsys.stdout.write('z' * 1024 * 1024 * {n})", "stdout"),
    "stderr": ("import sys\nfor i in range({n} * 16): print('e' * 65535, file=sys.stderr)", "stderr"),
    "no ascii": ("for i in range({n} * 8): print('\\U0001f600' * 32767 + '\\u00e9', end='x\\n')", "stdout"),
    "control characters": ("for i in range({n}): print('\\0' * (1024 * 1024 - 1))", "stdout"),
    "a descriptor": ("import os\nfor i in range({n} * 32): os.write(1, b'd' * 32768)", "stdout"),
    "a command": ("import os\nos.system('head -c {n}M /dev/zero | tr \"\\\\0\" c')", "stdout"),
    "a thread": (
        "import threading\ndef say():\n    for i in range({n}): print('t' * 1048575)\n"
        "one = threading.Thread(target=say)\none.start(); one.join()",
        "stdout",
    ),
    "a fork": (
        "import os\npid = os.fork()\nif not pid:\n    print('f' * (1024 * 1024 * {n} - 1), flush=True)\n"
        "    os._exit(0)\nos.waitpid(pid, 0)",
        "stdout",
    ),
}


@pytest.mark.parametrize("name", LOUD)
async def test_output_is_complete_and_costs_the_kernel_no_memory(name: str, start: Any, take: Any) -> None:
    client = await take(await start())
    code, stream = LOUD[name]
    size = 80
    await client.run("import sys; print('warm', file=sys.stderr)")
    tap = Tap(client)
    own = {"one string": 82 * MIB, "written at once": 80 * MIB, "a fork": 0}.get(name, 2 * MIB)
    before = forget_peak(client.kernel.pid)
    outcome = await client.run(code.format(n=size))
    assert outcome.reply["status"] == "ok", outcome.reply
    if name == "a fork":  # it tells the kernel, which sends on
        await client.until(lambda _: tap.size[stream] >= size * MIB)
    assert tap.size[stream] == size * MIB
    assert tap.largest <= MIB
    assert peak(client.kernel.pid) - before < own + KERNEL_MAY_GROW


async def test_the_bash_kernels_output_is_complete_and_costs_it_no_memory(start: Any, take: Any) -> None:
    client = await take(await start("bash"))
    tap = Tap(client)
    before = forget_peak(client.kernel.pid)
    outcome = await client.run("head -c 80M /dev/zero | tr '\\0' b; echo -n end >&2")
    assert outcome.reply["status"] == "ok"
    assert tap.size == {"stdout": 80 * MIB, "stderr": 3}
    assert tap.largest <= MIB
    assert peak(client.kernel.pid) - before < KERNEL_MAY_GROW


Deaf = Callable[[Any, bool], None]


@pytest.fixture
def deaf(take: Any) -> Iterator[Deaf]:
    """`deaf(client, True)`: the agent reads no output of the kernel until `deaf(client, False)`."""
    undo: dict[Any, Callable[[], None]] = {}

    def change(client: Any, is_deaf: bool) -> None:
        if not is_deaf:
            undo.pop(client)()
            return
        channels, loop = client.kernel._channels, asyncio.get_running_loop()
        socket, drain = channels._sockets["iopub"], channels._drain

        def hear() -> None:
            del channels._drain
            loop.add_reader(socket.fileno(), channels._drain, "iopub")
            channels._schedule("iopub")

        undo[client] = hear
        channels._drain = lambda channel: None if channel == "iopub" else drain(channel)
        loop.remove_reader(socket.fileno())

    yield change
    for hear in undo.values():
        hear()


async def until_it_waits(client: Any) -> None:
    """Wait until the kernel's main thread has stopped using the processor."""
    before = -1
    for _ in range(600):
        now = int(Path(f"/proc/{client.kernel.pid}/stat").read_text().rsplit(")", 1)[1].split()[11])
        if now == before and now:
            return
        before = now
        await asyncio.sleep(0.3)
    raise AssertionError("the kernel never waits")


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(100_000): print(i, 'x' * 9_990)",
        "print('x' * 400_000_000)",
        "for i in range(1000): display({'text/plain': 'x' * 1_000_000}, raw=True)",
        "import os\nos.system('yes | head -c 1000000000')",
        "import threading\ndef say():\n    for _ in range(20_000): print('x' * 9999)\n"
        "one = threading.Thread(target=say)\none.start(); one.join()",
    ],
    ids=["lines", "one string", "displays", "a command", "a thread"],
)
async def test_print_waits_for_the_agent_and_can_be_interrupted(
    code: str, start: Any, take: Any, deaf: Any
) -> None:
    client = await take(await start())
    await client.run("kept = 7")
    tap = Tap(client)
    before = forget_peak(client.kernel.pid)
    client.begin_run(code)
    await client.busy.wait()
    deaf(client, True)
    await until_it_waits(client)
    assert peak(client.kernel.pid) - before < KERNEL_MAY_GROW + (400_000_000 if "400_000_000" in code else 0)
    replies: list[str] = []
    client.kernel.on_message = lambda channel, parts: replies.append(channel)
    client.kernel.send("control", control_request())
    async with asyncio.timeout(20):
        while "control" not in replies:  # it answers while print waits  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    client.kernel.on_message = tap._on_message
    client.kernel.interrupt()
    deaf(client, False)
    outcome = await client.end()
    assert outcome.reply["status"] == "error" or "system" in code
    while (again := await client.run("print(kept)")).reply["status"] == "aborted":  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # what comes right after an error is
    assert again.reply["status"] == "ok"
    if "thread" not in code:
        assert sum(tap.size.values()) < 900_000_000, "the interrupt came too late"


def control_request() -> list[bytes]:
    from llmsafespace_agent.kernels.process import request

    return request("kernel_info_request", {})


async def test_an_interrupt_neither_loses_nor_repeats_what_was_printed(
    start: Any, take: Any, deaf: Any
) -> None:
    client = await take(await start())
    code = "done = 0\nfor i in range(1_000_000):\n    print('%07d' % i, '-' * 991)\n    done = i"
    client.begin_run(code)
    await client.busy.wait()
    await client.until(lambda outcome: outcome.of("stream") != [])
    deaf(client, True)
    await until_it_waits(client)
    os.kill(client.kernel.pid, signal.SIGINT)
    await asyncio.sleep(0.1)
    deaf(client, False)
    outcome = await client.end()
    assert outcome.reply["ename"] == "KeyboardInterrupt"
    lines = outcome.text().splitlines()
    done = int((await client.run("done")).result)
    assert [int(line[:7]) for line in lines] == list(range(len(lines)))
    assert len(lines) in (done + 1, done + 2)  # the interrupted one may be there as well


async def test_surrogates_become_what_they_stand_for(start: Any, take: Any) -> None:
    client = await take(await start())
    tap = Tap(client)  # decodes strictly
    texts: list[str] = []
    original = tap._on_message

    def on_message(channel: str, parts: list[bytes]) -> None:
        texts.append(json.loads(parts[3]).get("text", ""))
        original(channel, parts)

    client.kernel.on_message = on_message
    code = r"""
raw = 'é'.encode().decode('ascii', 'surrogateescape')
print('a\ud800b\ud83d\ude00c' + raw + '\udcff|', flush=True)
print('\ud83d\ude00' * 200_000 + raw * 200_000, flush=True)
"""
    outcome = await client.run(code)
    assert outcome.reply["status"] == "ok"
    text = "".join(texts)
    assert text == "a\\ud800b\U0001f600c\u00e9\\udcff|\n" + "\U0001f600" * 200_000 + "\u00e9" * 200_000 + "\n"


async def test_text_before_a_fork_is_sent_once(start: Any, take: Any) -> None:
    client = await take(await start())
    outcome = await client.run(
        "import os\nprint('before')\npid = os.fork()\nif not pid:\n    print('child'); os._exit(0)\n"
        "os.waitpid(pid, 0); print('after')"
    )
    await client.until(lambda outcome: "child" in outcome.text())
    assert [outcome.text().count(word) for word in ("before", "child", "after")] == [1, 1, 1]


@pytest.mark.parametrize(
    "code",
    [
        "from IPython.display import display, HTML\ndisplay(HTML('h' * 70_000_000))",
        "'r' * 70_000_000",
        "h = display('x', display_id=True); h.update({'text/plain': 'u' * 70_000_000}, raw=True)",
    ],
    ids=["display", "result", "update"],
)
async def test_a_message_that_nobody_can_pass_on_is_not_sent(code: str, start: Any, take: Any) -> None:
    client = await take(await start())
    outcome = await client.run(f"print('before')\n{code}")
    assert outcome.reply["status"] == "ok"
    assert outcome.text() == "before\n"
    (told,) = outcome.of("llmsafespace_too_large")
    assert told["size"] > 70_000_000
    assert "after" in (await client.run("print('after')")).text()


async def test_results_do_not_stay_for_ever(start: Any, take: Any) -> None:
    client = await take(await start())
    await client.run("import gc")
    before = forget_peak(client.kernel.pid)
    for number in range(60):
        assert (await client.run(f"'{number}' * 2_000_000")).reply["status"] == "ok"
    assert peak(client.kernel.pid) - before < 170 * MIB
    assert (await client.run("len(_)")).result in ("4000000",)
    assert (await client.run("1 + 1")).result == "2"
    assert (await client.run("_ + Out[max(Out)]")).result == "4"
