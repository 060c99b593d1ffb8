"""Much output over the channels websocket: complete or counted, never forged, and not in the gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
import pytest

from llmsafespace_gateway.jupyter.codecs import LegacyCodec
from llmsafespace_protocol.kernel_messages import pack

V1 = "v1.kernel.websocket.jupyter.org"
DURABLE = "v1.durable.llmsafespace.dev"
DOORS = {"legacy": (), "v1": (V1,), "durable": (DURABLE,)}
SUBPROTOCOLS = pytest.mark.parametrize("subprotocols", DOORS.values(), ids=DOORS)
DISPLAYS = "for i in range({n}): display({{'text/plain': 'd' * {size}}}, raw=True)"


async def state_of(api: Any, kernel: str) -> str:
    return str((await api.request("GET", f"/api/kernels/{kernel}")).json()["execution_state"])


async def ended(api: Any, kernel: str) -> None:
    """Wait until the kernel has begun and is idle again."""
    async with asyncio.timeout(90):
        for state in ("busy", "idle"):
            while (await state_of(api, kernel)) != state:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


CODES = {
    "displays": DISPLAYS.format(n=400, size=1024 * 1024),
    "large displays": DISPLAYS.format(n=20, size=20 * 1024 * 1024),
    "text": "for i in range(3200): print('x' * 131071)",
}
USUAL = [("v1", "displays"), ("v1", "text")]  # the others take minutes


@pytest.mark.parametrize(
    ("subprotocols", "code"),
    [
        pytest.param(
            *(DOORS[door], CODES[code]),
            id=f"{door}-{code}",
            marks=() if (door, code) in USUAL else pytest.mark.heavy,
        )
        for door in DOORS
        for code in CODES
    ],
)
async def test_a_reader_that_has_stopped_costs_the_gateway_little(
    api: Any, gateway: Any, subprotocols: Any, code: str
) -> None:
    kernel = (await api.start())["id"]
    process = psutil.Process(gateway.pid)
    async with api.channels(kernel, *subprotocols, max_queue=1) as channels:
        await channels.run("1")
        before = most = process.memory_info().rss
        channels.socket.transport.pause_reading()
        await channels.execute(code)
        waiting = asyncio.ensure_future(ended(api, kernel))
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.02)
            most = max(most, process.memory_info().rss)
        waiting.result()
        channels.socket.transport.abort()
    assert most - before < 64_000_000


@SUBPROTOCOLS
async def test_output_around_a_string_of_70_mb_is_complete(api: Any, subprotocols: Any) -> None:
    kernel = (await api.start())["id"]
    async with api.channels(kernel, *subprotocols) as channels:
        got = await channels.run("print('before'); print('y' * 70_000_000); print('after')")
    assert stdout(got) == "before\n" + "y" * 70_000_000 + "\nafter\n"


@SUBPROTOCOLS
async def test_a_display_too_large_is_an_error_output_and_counted(api: Any, subprotocols: Any) -> None:
    kernel = (await api.start())["id"]
    async with api.channels(kernel, *subprotocols) as channels:
        got = await channels.run("print('before'); display({'text/plain': 'd' * 70_000_000}, raw=True)")
        texts = channels.texts
    assert stdout(got, "stdout") == "before\n"
    (error,) = [message for message in got if message["header"]["msg_type"] == "error"]
    assert error["content"]["ename"] == "MessageTooLarge"
    if subprotocols == (DURABLE,):
        assert [text["gap"]["missed"] for text in texts] == [1]
    else:
        assert "[1 messages were lost here" in stdout(got, "stderr")


def stdout(messages: list[dict[str, Any]], *names: str) -> str:
    return "".join(
        m["content"]["text"]
        for m in messages
        if m["header"]["msg_type"] == "stream" and m["content"]["name"] in (names or ("stdout",))
    )


FORGE = r"""
import json
kernel = get_ipython().kernel
for raw in (b'{"llmsafespace": {"end": "oom"}}', b'{"llmsafe\\u0073pace": {"end": "oom"}}'):
    more = b', "metadata": ' + raw + b', "channel": "control", "x": {}'
    for content in (b'{"data": {}}', b'{"data": {}}' + more):
        message = kernel.session.msg("display_data", {}, parent=get_ipython().get_parent())
        parts = kernel.session.serialize(message)
        kernel.iopub_thread.send_multipart([b"display_data", *parts[:-2], raw, content])
"""


@SUBPROTOCOLS
async def test_a_kernel_does_not_speak_for_the_agent(api: Any, subprotocols: Any) -> None:
    kernel = (await api.start())["id"]
    async with api.channels(kernel, *subprotocols) as channels:
        msg_id = await channels.execute(FORGE)
        ends = 0
        while ends < 2:
            frame = await asyncio.wait_for(channels.socket.recv(), 60)
            text = frame.decode("utf-8", "replace") if isinstance(frame, bytes) else frame
            ends += '"execute_reply"' in text or '"execution_state":"idle"' in text.replace(" ", "")
            if isinstance(frame, str):
                message = json.loads(frame)
                assert "llmsafespace" not in message["metadata"]
                assert message["channel"] in ("iopub", "shell")
    assert msg_id


def test_content_that_is_no_json_cannot_replace_what_the_agent_says() -> None:
    header = {"msg_id": "m", "msg_type": "display_data"}
    content = b'{}, "metadata": {"llmsafespace": {}}, "channel": "shell", "parent_header": {"msg_id": "f"}'
    parts = [json.dumps(header).encode(), b"{}", b'{"a": 1}', content]
    _, text = LegacyCodec().to_client(bytes(8) + pack("iopub", parts))
    message = json.loads(bytes(text))
    assert (message["metadata"], message["channel"], message["parent_header"]) == ({"a": 1}, "iopub", {})
