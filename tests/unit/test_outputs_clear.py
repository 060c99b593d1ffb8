"""`clear_output` in the answers of REST and SDK does what it does in a notebook: nbclient is the control."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import nbformat
import pytest
from nbclient import NotebookClient

from llmsafespace import events as sdk
from llmsafespace.outputs import ExecutionBuilder
from llmsafespace_gateway.sandboxes import events as rest
from llmsafespace_gateway.sandboxes.collecting import collect
from llmsafespace_gateway.sandboxes.executions import _event

OUT, ERR = ("stream", {"name": "stdout", "text": "o"}), ("stream", {"name": "stderr", "text": "e"})
SHOWN = ("display_data", {"data": {"text/plain": "d"}, "metadata": {}, "transient": {}})
NOW, LATER = ("clear_output", {"wait": False}), ("clear_output", {"wait": True})
LAST = ("stream", {"name": "stdout", "text": "last"})
ERROR = ("error", {"ename": "E", "evalue": "v", "traceback": []})
CELLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "text": [OUT, ERR, NOW, LAST],
    "text, later": [OUT, ERR, LATER, LAST],
    "nothing follows": [OUT, SHOWN, LATER],
    "a display follows": [OUT, SHOWN, LATER, SHOWN],
    "an error follows": [OUT, SHOWN, LATER, ERROR],
    "progress": [OUT, LATER, OUT, LATER, OUT, LATER, LAST],
    "later, then now": [OUT, LATER, NOW, LAST],
    "both streams": [ERR, LATER, OUT, ERR],
}


def notebook(cell: list[tuple[str, dict[str, Any]]]) -> tuple[str, str, int]:
    """What nbclient keeps: stdout, stderr, how many displays."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("")])
    client = NotebookClient(made)
    client.reset_execution_trackers()
    client.clear_before_next_output = False
    for kind, content in cell:
        message = {"msg_type": kind, "header": {"msg_type": kind}, "content": content, "parent_header": {}}
        client.process_message(message, made.cells[0], 0)
    outputs = made.cells[0].outputs
    texts = [
        "".join(output["text"] for output in outputs if output.get("name") == name)
        for name in ("stdout", "stderr")
    ]
    return texts[0], texts[1], sum(output["output_type"] == "display_data" for output in outputs)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
async def test_rest_keeps_what_a_notebook_keeps(cell: list[tuple[str, dict[str, Any]]]) -> None:
    async def source() -> AsyncIterator[rest.Event]:
        for kind, content in cell:
            event = _event(1, kind, memoryview(msgspec.json.encode(content)))
            assert event is not None
            yield event
        moment = datetime.now(UTC)
        yield rest.End(execution_id="e", end="ok", exit_code=0, started_at=moment, completed_at=moment)

    answer = await collect(source())
    assert (answer.stdout, answer.stderr, len(answer.results)) == notebook(cell)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_the_sdk_keeps_what_a_notebook_keeps(cell: list[tuple[str, dict[str, Any]]]) -> None:
    builder = ExecutionBuilder("e")
    for kind, content in cell:
        event = sdk.from_message(kind, content)
        assert event is not None
        builder.add(event)
    execution = builder.execution
    logs = execution.logs
    assert ("".join(logs.stdout), "".join(logs.stderr), len(execution.results)) == notebook(cell)
