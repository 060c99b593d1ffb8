"""The history of a session is what a stock kernel tells, without SQLite and without a file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

CELLS = ["x = 1", "!true", "y = x", "x = 1", "z = [x, y]\nz"]
QUESTIONS: dict[str, dict[str, Any]] = {
    "tail": {"hist_access_type": "tail", "n": 3},
    "tail, transformed": {"hist_access_type": "tail", "n": 10, "raw": False},
    "tail of ten": {"hist_access_type": "tail"},
    "search": {"hist_access_type": "search", "pattern": "*x*", "n": 10},
    "search once": {"hist_access_type": "search", "pattern": "x*", "n": 10, "unique": True},
    "search the last": {"hist_access_type": "search", "pattern": "?*", "n": 1},
    "range": {"hist_access_type": "range", "session": 0, "start": 1, "stop": 3},
    "another session": {"hist_access_type": "range", "session": -5, "start": 1, "stop": 3},
}


def asked(question: dict[str, Any]) -> dict[str, Any]:
    return {"output": False, "raw": True, **question}


def stock(folder: Path) -> dict[str, list[Any]]:
    """The same from ipykernel as it comes."""
    env = {**os.environ, "IPYTHONDIR": str(folder)}
    manager, client = start_new_kernel(kernel_name="python3", env=env)
    try:
        for cell in CELLS:
            client.execute_interactive(cell, timeout=60, output_hook=lambda message: None)
        told = {}
        for name, question in QUESTIONS.items():
            msg_id = client.history(**asked(question))
            reply = client.get_shell_msg(timeout=60)
            while reply["parent_header"].get("msg_id") != msg_id:
                reply = client.get_shell_msg(timeout=60)
            told[name] = [line[1:] for line in reply["content"]["history"]]
        return told
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


async def test_history_is_that_of_a_stock_kernel(start: Any, take: Any, tmp_path: Path) -> None:
    client = await take(await start())
    for cell in CELLS:
        await client.run(cell)
    ours = {}
    for name, question in QUESTIONS.items():
        reply = (await client.ask("history_request", asked(question))).reply
        ours[name] = [line[1:] for line in reply["history"]]
    assert ours == await asyncio.to_thread(stock, tmp_path / "stock")
    assert (await client.run("%history")).text().splitlines()[:2] == ["x = 1", "!true"]
    assert not list(tmp_path.joinpath("workspace").parent.glob(".ipython/**/history.sqlite"))


@pytest.mark.parametrize("size", [1024 * 1024])
async def test_history_is_bounded(start: Any, take: Any, size: int) -> None:
    client = await take(await start())
    for number in range(10):
        await client.run(f"n = {number}  # {'x' * size}")
    reply = (await client.ask("history_request", asked({"hist_access_type": "tail", "n": 100}))).reply
    lines = [line[1] for line in reply["history"]]
    assert lines == list(range(lines[0], 11))
    assert 3 <= lines[0] <= 5
    assert (await client.run("len(In), In[10][:5]")).result == "(12, 'n = 9')"
