"""When a sandbox is ready: a kernel waits in it, and its network is shut. Otherwise nothing is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_agent.server import network

from .conftest import DEADLINE, TOKEN, text
from .test_agent_connections import free_port


async def connects(port: int) -> bool:
    """Whether the port accepts, and then says nothing and ends."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    writer.close()
    return True


async def until_connects(port: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while not await connects(port):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)


async def test_the_port_opens_when_a_kernel_is_parked(launch: Any) -> None:
    ready, port = free_port(), free_port()
    agent = await launch(readyPort=ready, listen={"host": "127.0.0.1", "port": port})
    await until_connects(ready)
    rpc = await agent.rpc()
    assert (await rpc("status")).state == "ready"
    await agent.bind(rpc)
    got, _ = await agent.execution("e", code="print(1)")
    assert text(got) == "1\n"
    assert await connects(ready)


async def test_nothing_is_served_before_the_network_is_shut(launch: Any) -> None:
    asked = asyncio.Event()

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    canary = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{canary.sockets[0].getsockname()[1]}"
    ready, port = free_port(), free_port()
    agent = await launch(
        readyPort=ready, listen={"host": "127.0.0.1", "port": port}, canaries=[address, "127.0.0.1:1"]
    )
    await asyncio.wait_for(asked.wait(), DEADLINE)
    assert not await connects(port)
    assert not await connects(ready)
    canary.close()
    await canary.wait_closed()
    await until_connects(ready)
    assert (await (await agent.rpc())("status")).state == "ready"


async def test_an_open_network_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PATIENCE", 0.3)
    canary = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{canary.sockets[0].getsockname()[1]}"
    with pytest.raises(network.NetworkOpen, match=address):
        await network.shut(["127.0.0.1:1", address])
    canary.close()


async def test_an_unanswered_canary_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_ANSWER", 0.2)
    await network.shut(["192.0.2.1:443"])  # documentation addresses answer nowhere


def run_agent(folder: Path, patience: float = 30.0, **options: Any) -> subprocess.CompletedProcess[str]:
    """An agent that is expected to end by itself."""
    config = {
        "name": "test",
        "token": TOKEN,
        "listen": {"host": "127.0.0.1", "port": free_port()},
        "kernels": [{"language": "python", "argv": [sys.executable], "template": True}],
        "workspace": str(folder),
        "runDir": str(folder / "run"),
        **options,
    }
    code = f"from llmsafespace_agent.server import main, network; network.PATIENCE = {patience}; "
    command = [sys.executable, "-c", f"{code} raise SystemExit(main.main())"]
    return subprocess.run(command, input=json.dumps(config), capture_output=True, text=True, timeout=DEADLINE)


async def test_a_sandbox_whose_network_stays_open_ends(tmp_path: Path) -> None:
    canary = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    address = f"127.0.0.1:{canary.sockets[0].getsockname()[1]}"
    done = await asyncio.to_thread(run_agent, tmp_path, 0.5, canaries=[address])
    assert done.returncode == 1
    assert f"{address} can be reached" in done.stderr
    canary.close()


def test_a_sandbox_whose_kernel_does_not_start_ends(tmp_path: Path) -> None:
    kernels = [{"language": "python", "argv": ["/no/such/python"], "template": True}]
    done = run_agent(tmp_path, readyPort=free_port(), kernels=kernels)
    assert done.returncode == 1
    assert "/no/such/python" in done.stderr


async def test_folders_that_are_missing_are_made(launch: Any, tmp_path: Path) -> None:
    missing = tmp_path / "home" / "site-packages"
    agent = await launch(folders=[str(missing), str(tmp_path)])
    await agent.bind(await agent.rpc())
    assert missing.is_dir()


@pytest.mark.parametrize(
    "wrong", [{"canaries": ["kube-dns:53"]}, {"canaries": ["10.0.0.1"]}, {"egress": {"proxy": "10.0.0.1:0"}}]
)
def test_addresses_are_checked_at_start(tmp_path: Path, wrong: dict[str, Any]) -> None:
    done = run_agent(tmp_path, **wrong)
    assert done.returncode == 2
    assert "configuration is wrong" in done.stderr
