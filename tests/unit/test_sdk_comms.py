"""Messages of comms as events, with their buffers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmsafespace import messages
from llmsafespace.events import Comm, End
from llmsafespace.messages import Message
from llmsafespace.outputs import AsyncOutput, Callbacks
from llmsafespace.subscription import Subscription


def message(msg_type: str, content: Any, buffers: list[bytes], metadata: Any = None) -> Message:
    header = json.dumps(messages.header(msg_type, "s")).encode()
    parts = [header, b"{}", json.dumps(metadata or {}).encode(), json.dumps(content).encode(), *buffers]
    return Message("iopub", parts)


OPEN = {"comm_id": "c", "target_name": "jupyter.widget", "data": {"state": {"value": 1}}}


async def test_comms_are_events_in_their_order() -> None:
    subscription = Subscription("m", b"")
    subscription.put(message("comm_open", OPEN, [b"\x00\xff"], {"version": "2.1.0"}))
    subscription.put(message("comm_msg", {"comm_id": "c", "data": {"method": "update"}}, []))
    subscription.put(message("comm_close", {"comm_id": "c", "data": {}}, []))
    subscription.finish(End("ok"))

    async def batches() -> Any:
        yield await subscription.batch()

    heard: list[Comm] = []
    execution = await AsyncOutput("m", batches()).finish(Callbacks(on_comm=heard.append))
    assert [comm.action for comm in heard] == ["open", "msg", "close"]
    assert execution.comms == heard
    first = heard[0]
    assert (first.comm_id, first.target, first.buffers) == ("c", "jupyter.widget", (b"\x00\xff",))
    assert (first.data, first.metadata) == ({"state": {"value": 1}}, {"version": "2.1.0"})
    assert not execution.results


@pytest.mark.parametrize("content", [{}, {"data": None}, {"data": [1]}, {"comm_id": 5, "data": "x"}])
async def test_strange_comms(content: Any) -> None:
    subscription = Subscription("m", b"")
    subscription.put(message("comm_msg", content, []))
    (event,) = await subscription.batch()
    assert isinstance(event, Comm)
    assert event.data == {}
