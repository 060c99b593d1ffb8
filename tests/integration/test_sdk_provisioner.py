"""Sandbox kernels through stock Jupyter libraries."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager, start_new_kernel
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from nbclient import NotebookClient

from llmsafespace import Sandbox
from llmsafespace.jupyter.install import install
from tests.conftest import Gateway


@pytest.fixture(scope="module", autouse=True)
def environment(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    prefix = tmp_path_factory.mktemp("prefix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSAFESPACE_API_KEY", gateway.admin_key)
        patch.delenv("LLMSAFESPACE_API_URL", raising=False)
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        patch.setenv("HOST_SECRET", "not for sandboxes")
        install(name="sandbox", runtime="python", url=gateway.url, env={"MODE": "spec"}, prefix=str(prefix))
        yield


@pytest.fixture(scope="module")
def kernel(environment: None) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(kernel_name="sandbox")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel()


Told = list[tuple[str, dict[str, Any]]]


def run(client: BlockingKernelClient, code: str, **options: Any) -> tuple[dict[str, Any], Told]:
    told: Told = []
    reply = client.execute_interactive(
        code,
        timeout=60,
        output_hook=lambda message: told.append((message["msg_type"], message["content"])),
        **options,
    )
    return reply["content"], told


def text(told: Told) -> str:
    return "".join(content["text"] for kind, content in told if kind == "stream")


def living(gateway: Gateway) -> set[str]:
    infos = Sandbox.list(state="running", api_url=gateway.url, api_key=gateway.admin_key)
    return {info.id for info in infos if info.metadata.get("jupyter")}


def test_code_and_environment(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    reply, told = run(
        kernel[1], "import os; print(os.environ.get('MODE'), os.environ.get('HOST_SECRET')); 6 * 7"
    )
    assert reply["status"] == "ok"
    assert text(told) == "spec None\n"
    assert [content["data"]["text/plain"] for kind, content in told if kind == "execute_result"] == ["42"]
    _, told = run(kernel[1], "import matplotlib.pyplot as plt; plt.plot([1]); plt.show()")
    assert any("image/png" in content["data"] for kind, content in told if kind == "display_data")


def test_standard_input(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    client = kernel[1]
    _, told = run(
        client, "print(input('name? '))", allow_stdin=True, stdin_hook=lambda message: client.input("Ada")
    )
    assert text(told).endswith("Ada\n")


def test_binary_comm_buffers(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    client = kernel[1]
    code = (
        "from comm import create_comm\n"
        "comm = create_comm(target_name='t', data={})\n"
        "comm.on_msg(lambda message: comm.send({'got': 1}, buffers=[bytes(message['buffers'][0]) * 2]))\n"
        "print(comm.comm_id)"
    )
    comm_id = text(run(client, code)[1]).strip()
    message = client.session.msg("comm_msg", {"comm_id": comm_id, "data": {}})
    client.session.send(client.shell_channel.socket, message, buffers=[b"\x00\xff"])
    while True:
        told = client.get_iopub_msg(timeout=30)
        if told["msg_type"] == "comm_msg":
            break
    assert told["content"]["data"] == {"got": 1}
    assert bytes(told["buffers"][0]) == b"\x00\xff\x00\xff"


def test_two_clients_each_get_their_replies(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    manager, first = kernel
    second = manager.client()
    second.session = first.session.clone()
    second.session.session = "second"
    second.start_channels()
    try:
        second.wait_for_ready(timeout=30)
        reply, told = run(second, "print('second')")
        assert reply["status"] == "ok"
        assert text(told) == "second\n"
        assert run(first, "'first'")[0]["status"] == "ok"
    finally:
        second.stop_channels()


def test_interrupt_keeps_variables(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    manager, client = kernel
    told: Told = []

    def hook(message: dict[str, Any]) -> None:
        told.append((message["msg_type"], message["content"]))
        if message["msg_type"] == "stream":
            threading.Thread(target=manager.interrupt_kernel).start()

    reply = client.execute_interactive(
        "kept = 1\nprint('on', flush=True)\nwhile True: pass", timeout=60, output_hook=hook
    )
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert run(client, "kept")[0]["status"] == "ok"


@pytest.mark.parametrize("now", [False, True])
def test_restart_keeps_the_sandbox(
    gateway: Gateway, kernel: tuple[KernelManager, BlockingKernelClient], now: bool
) -> None:
    manager, client = kernel
    before = living(gateway)
    run(client, "gone = 1; open('stays', 'w').close()")
    manager.restart_kernel(now=now)
    client.wait_for_ready(timeout=60)
    assert (
        text(run(client, "import os; print('gone' in globals(), os.path.exists('stays'))")[1])
        == "False True\n"
    )
    assert living(gateway) == before
    assert manager.is_alive()


def test_a_dead_kernel_is_seen_and_starts_again(kernel: tuple[KernelManager, BlockingKernelClient]) -> None:
    manager, client = kernel
    request = client.execute("import os; os._exit(1)")
    deadline = time.monotonic() + 60
    while manager.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    replies: list[str] = []
    with contextlib.suppress(queue.Empty):
        while True:
            replies.append(client.get_shell_msg(timeout=1)["parent_header"].get("msg_id"))
    assert request not in replies
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=60)
    assert manager.is_alive()
    assert run(client, "1")[0]["status"] == "ok"


async def test_async_manager_and_shutdown(gateway: Gateway) -> None:
    before = living(gateway)
    manager = AsyncKernelManager(kernel_name="sandbox")
    await manager.start_kernel(env={"MODE": "argument"})
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)
    assert len(await asyncio.to_thread(living, gateway) - before) == 1
    told: list[str] = []
    await client.execute_interactive(
        "import os; print(os.environ['MODE'])",
        timeout=60,
        output_hook=lambda message: told.append(message["content"].get("text", "")),
    )
    assert "".join(told) == "spec\n"  # the specification's own variables win, as for local kernels
    client.stop_channels()
    await manager.shutdown_kernel()
    assert not await manager.is_alive()
    assert await asyncio.to_thread(living, gateway) == before


async def test_a_server_of_many_kernels(gateway: Gateway) -> None:
    before = living(gateway)
    kernels = AsyncMultiKernelManager()
    ids = await asyncio.gather(*(kernels.start_kernel(kernel_name="sandbox") for _ in range(2)))
    assert len(await asyncio.to_thread(living, gateway) - before) == 2
    assert all([await kernels.is_alive(kernel_id) for kernel_id in ids])
    await kernels.shutdown_all(now=True)
    assert await asyncio.to_thread(living, gateway) == before


def test_what_a_specification_asks_for(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    config = {
        "files": {"data.csv": str(tmp_path / "data.csv")},
        "resources": {"memory": "700Mi"},
        "security_level": "high",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
        install(name="asked", runtime="python", url=gateway.url, config=config, prefix=str(tmp_path))
        manager, client = start_new_kernel(kernel_name="asked")
        try:
            assert text(run(client, "print(open('data.csv').read())")[1]) == "1,2\n"
            infos = Sandbox.list(state="running", api_url=gateway.url, api_key=gateway.admin_key)
            (info,) = [one.raw for one in infos if one.raw["securityLevel"] == "high"]
            assert info["resources"]["memory"] == "700Mi"
        finally:
            client.stop_channels()
            manager.shutdown_kernel()


def test_nbclient_runs_a_notebook(gateway: Gateway, tmp_path: Path) -> None:
    before = living(gateway)
    cell = nbformat.v4.new_code_cell
    notebook = nbformat.v4.new_notebook(
        cells=[
            cell("import sys; print(sys.executable)"),
            cell("import matplotlib.pyplot as plt; plt.plot([1]); plt.show()"),
            cell("x = 6 * 7\nx"),
        ],
        metadata={"kernelspec": {"name": "sandbox", "display_name": "Sandbox"}},
    )
    NotebookClient(notebook).execute(cwd=str(tmp_path))
    outputs = [cell.outputs for cell in notebook.cells]
    assert outputs[0][0].text.startswith("/opt/runtime/")
    assert any("image/png" in output.get("data", {}) for output in outputs[1])
    assert outputs[2][0].data["text/plain"] == "42"
    assert living(gateway) == before


def test_output_is_whole_and_the_gateways_end_is_survived(own_gateway: Gateway, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMSAFESPACE_API_KEY", own_gateway.admin_key)
        patch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
        install(name="own", runtime="python", url=own_gateway.url, prefix=str(tmp_path))
        manager, client = start_new_kernel(kernel_name="own")
        try:
            killed = threading.Event()

            def hook(message: dict[str, Any]) -> None:
                told.append((message["msg_type"], message["content"]))
                if message["msg_type"] == "stream" and not killed.is_set():
                    killed.set()
                    own_gateway.kill()
                    own_gateway.start()

            told: Told = []
            code = "import time\nfor i in range(40):\n    print(i, flush=True)\n    time.sleep(0.05)"
            reply = client.execute_interactive(code, timeout=120, output_hook=hook)
            assert reply["content"]["status"] == "ok"
            assert text(told) == "".join(f"{number}\n" for number in range(40))
            told.clear()
            client.execute_interactive("for i in range(3000): display(i)", timeout=120, output_hook=hook)
            shown = [content["data"]["text/plain"] for kind, content in told if kind == "display_data"]
            assert shown == [str(number) for number in range(3000)]
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
