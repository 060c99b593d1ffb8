"""A kernel that dies looks dead to Jupyter applications, as one of theirs; forks and late ends are survived.

What holds for `local` (a stock kernel of this machine) must hold for `sandbox`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from llmsafespace import Sandbox
from llmsafespace.jupyter.install import install
from tests.conftest import Gateway

LIMIT = 120
DEATHS = {
    "os._exit": "import os; os._exit(1)",
    "SIGKILL": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
}


@pytest.fixture(scope="module", autouse=True)
def environment(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    prefix = tmp_path_factory.mktemp("prefix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)
        patch.delenv("LLMSAFESPACE_API_URL", raising=False)
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        install(name="sandbox", runtime="python", url=gateway.url, prefix=str(prefix))
        yield


def living(gateway: Gateway) -> set[str]:
    infos = Sandbox.list(state="running", api_url=gateway.url, api_key=gateway.admin_key)
    return {info.id for info in infos if info.metadata.get("jupyter")}


def notebook(kernel: str, *sources: str, tags: list[str] | None = None) -> Any:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = tags or []
    spec = {"name": kernel, "display_name": kernel}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})


@pytest.fixture(params=["local", "sandbox"])
def kernel(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return {"local": "python3"}.get(name, name)


@pytest.mark.parametrize("how", ["plain", "allow_errors", "raises-exception"])
def test_a_notebook_whose_kernel_died_is_not_done(gateway: Gateway, kernel: str, how: str) -> None:
    before = living(gateway)
    tags = [how] if how == "raises-exception" else []
    made = notebook(kernel, DEATHS["os._exit"], "after = 1\nprint(after)", tags=tags)
    with pytest.raises(DeadKernelError):
        NotebookClient(made, allow_errors=how == "allow_errors", timeout=LIMIT).execute()
    assert made.cells[0].outputs == made.cells[1].outputs == []
    assert living(gateway) == before


@pytest.mark.parametrize("code", DEATHS.values(), ids=DEATHS)
def test_nothing_is_said_in_a_dead_kernels_place(kernel: str, code: str) -> None:
    manager, client = start_new_kernel(kernel_name=kernel)
    try:
        client.execute("print('before', flush=True)\n" + code)
        said: list[str] = []
        deadline = time.monotonic() + LIMIT
        while manager.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        client.execute("1")  # nobody hears this
        for receive in (client.get_iopub_msg, client.get_shell_msg):
            try:
                while True:
                    message = receive(timeout=1)
                    if message["msg_type"] not in ("iopub_welcome", "kernel_info_reply"):
                        said.append(message["content"].get("execution_state") or message["msg_type"])
            except queue.Empty:
                pass
        # What was printed last may be lost with a local kernel.
        assert [word for word in said if word not in ("starting", "idle", "busy", "stream")] == [
            "execute_input"
        ]
        assert said[-1] in ("execute_input", "stream")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_heart_that_no_longer_beats(kernel: str) -> None:
    """For clients without a manager, that is all there is to see."""
    manager, client = start_new_kernel(kernel_name=kernel)
    client.hb_channel.time_to_dead = 0.3
    client.hb_channel.unpause()
    try:
        client.execute(DEATHS["os._exit"])
        deadline = time.monotonic() + LIMIT
        while client.hb_channel.is_beating():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=LIMIT)
        assert client.execute_interactive("1", timeout=LIMIT)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_notebook(kernel: str) -> str:
    made = notebook(kernel, "6 * 7")
    NotebookClient(made, timeout=LIMIT).execute()
    return str(made.cells[0].outputs[0].data["text/plain"])


def test_a_fork_is_survived(gateway: Gateway, kernel: str) -> None:
    """As nbclient's parallel test has it: a notebook here, then others in forked processes."""
    before = living(gateway)
    assert run_notebook(kernel) == "42"
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(run_notebook, [kernel] * 3, timeout=LIMIT)) == ["42"] * 3
    assert run_notebook(kernel) == "42"
    assert living(gateway) == before


def test_a_kernel_survives_a_fork_of_its_application(gateway: Gateway, tmp_path: Path) -> None:
    """And ends with its application, though the forked process is still there."""
    before = living(gateway)
    script = (
        "import os, sys, time\n"
        "from jupyter_client.manager import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='sandbox')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    manager.is_alive(); time.sleep(60); os._exit(0)\n"
        "assert client.execute_interactive('1', timeout=60)['content']['status'] == 'ok'\n"
        "client.stop_channels()\n"
        "if sys.argv[1] == 'shutdown': manager.shutdown_kernel()\n"
        "print(child, flush=True)\n"
        "os._exit(0)\n"
    )
    for how in ("shutdown", "exit"):
        with (tmp_path / "said").open("w") as said:  # no pipe, which the forked process would hold open
            subprocess.run([sys.executable, "-c", script, how], stdout=said, timeout=LIMIT, check=True)
        deadline = time.monotonic() + LIMIT
        while living(gateway) != before:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "said").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("when", ["atexit", "thread", "object"])
def test_a_late_shutdown(gateway: Gateway, kernel: str, when: str, tmp_path: Path) -> None:
    """While Python ends, when no thread pool takes work any more."""
    before = living(gateway)
    script = (
        "import atexit, sys, threading, time\n"
        "from jupyter_client.manager import start_new_kernel\n"
        "def end():\n"
        "    client.stop_channels(); manager.shutdown_kernel()\n"
        "    open('ended', 'w').close()\n"
        "if sys.argv[2] == 'atexit': atexit.register(end)\n"
        "manager, client = start_new_kernel(kernel_name=sys.argv[1])\n"
        "if sys.argv[2] == 'thread':\n"
        "    threading._register_atexit(lambda: None)\n"
        "    threading.Thread(target=lambda: (time.sleep(1), end())).start()\n"
        "if sys.argv[2] == 'object':\n"
        "    class Holder:\n"
        "        def __del__(self, end=end): end()\n"
        "    holder = Holder()\n"
        "    atexit.register(lambda: globals().pop('holder'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, kernel, when], stderr=subprocess.PIPE, cwd=tmp_path, timeout=LIMIT
    )
    assert (done.returncode, (tmp_path / "ended").exists()) == (0, True), done.stderr
    assert b"Traceback" not in done.stderr, done.stderr
    assert living(gateway) == before
