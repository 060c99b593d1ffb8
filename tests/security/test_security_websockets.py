"""Websockets: who may open one, and what a viewer may send on it, in each subprotocol."""

from __future__ import annotations

import contextlib
import json
import uuid
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llmsafespace_protocol.kernel_messages import pack
from tests.integration.jupyter.conftest import Channels
from tests.security.conftest import World
from tests.security.sockets import (
    CHANNELS_PATH,
    STREAM_PATH,
    SUBPROTOCOLS,
    channels,
    dial,
    stream,
)
from tests.security.support import SECRET

PATHS = [CHANNELS_PATH, STREAM_PATH]
every_socket = pytest.mark.parametrize("path", PATHS, ids=["channels", "stream"])
every_subprotocol = pytest.mark.parametrize("subprotocol", SUBPROTOCOLS.values(), ids=list(SUBPROTOCOLS))


async def refusal(url: str, path: str, key: str | None, query: str = "") -> tuple[int, str, str]:
    """The status, code and body of an upgrade that has to be refused."""
    with pytest.raises(InvalidStatus) as refused:
        await dial(url, path, key, query=query)
    body = (refused.value.response.body or b"").decode()
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message", "details"}
    assert SECRET not in body
    return refused.value.response.status_code, error["code"], body


# -- opening one -------------------------------------------------------------------------------------------


@every_socket
async def test_no_valid_key_opens_no_socket(path: str, gateway: Any, world: World) -> None:
    path = path.format(**world.tenant.values)
    for why, key in world.bad_keys.items():
        assert (await refusal(gateway.url, path, key))[:2] == (401, "unauthorized"), why
        if key is not None:
            said = await refusal(gateway.url, path, None, f"?token={key}")
            assert said[:2] == (401, "unauthorized"), why
            assert key not in said[2]


@every_socket
async def test_a_good_key_in_the_query_opens_one(path: str, gateway: Any, world: World) -> None:
    socket = await dial(
        gateway.url, path.format(**world.tenant.values), None, query=f"?token={world.tenant.owner.key}"
    )
    await socket.close()


@every_socket
async def test_a_header_that_is_no_key_is_not_saved_by_the_query(
    path: str, gateway: Any, world: World
) -> None:
    query = f"?token={world.tenant.owner.key}"
    said = await refusal(gateway.url, path.format(**world.tenant.values), "garbage", query)
    assert said[:2] == (401, "unauthorized")


@every_socket
async def test_strangers_cannot_tell_whether_there_is_such_a_socket(
    path: str, gateway: Any, world: World
) -> None:
    never = {"kernel_id": str(uuid.uuid4()), "sandbox_id": f"sb-{uuid.uuid4().hex}"}
    for person in (world.foreigner, world.foreign_admin, world.colleague, world.bystander):
        answer = await refusal(gateway.url, path.format(**world.tenant.values), person.key)
        nothing = await refusal(gateway.url, path.format(**never), person.key)
        assert answer[:2] == nothing[:2] == (404, "not_found")
        for name, value in never.items():
            nothing = (*nothing[:2], nothing[2].replace(value, world.tenant.values[name]))
        assert answer == nothing


@every_socket
async def test_a_key_without_the_scope_opens_none(path: str, gateway: Any, world: World) -> None:
    key = world.operator.key(world.tenant.owner.id, scopes=["execute", "files:read"])["key"]
    said = await refusal(gateway.url, path.format(**world.tenant.values), key)
    assert said[:2] == (403, "forbidden")


@every_socket
def test_without_an_upgrade_it_is_a_bad_request(path: str, world: World) -> None:
    answer = world.tenant.owner.client.get(path.format(**world.tenant.values))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


# -- kernel messages ---------------------------------------------------------------------------------------

STEAL = {"code": "kept = 'stolen'; open('/workspace/stolen', 'w').close()", "silent": False}
COMM = {"comm_id": "c", "target_name": "t", "data": {}}
SHELL: dict[str, dict[str, Any]] = {
    "execute_request": STEAL,
    "inspect_request": {"code": "kept", "cursor_pos": 4, "detail_level": 0},
    "complete_request": {"code": "ke", "cursor_pos": 2},
    "history_request": {"output": True, "raw": True, "hist_access_type": "tail", "n": 10},
    "comm_open": COMM,
    "comm_msg": COMM,
    "comm_close": COMM,
    "interrupt_request": {},
    "shutdown_request": {"restart": False},
    "debug_request": {"type": "request", "seq": 1, "command": "evaluate", "arguments": {"expression": "1"}},
    "create_subshell_request": {},
    "delete_subshell_request": {"subshell_id": "s"},
    "list_subshell_request": {},
    "usage_request": {},
    "connect_request": {},
    "apply_request": {},
    "input_reply": {"value": "stolen"},
    "surprise_request": {},
    "surprise": {},
    "execute_reply": {"status": "ok"},
    "KERNEL_INFO_REQUEST": {},
    "kernel_info_request ": {},
}
READING: dict[str, dict[str, Any]] = {
    "kernel_info_request": {},
    "comm_info_request": {},
    "is_complete_request": {"code": "1"},
}
FORBIDDEN: list[tuple[str, str, dict[str, Any]]] = [
    *(("shell", kind, content) for kind, content in SHELL.items()),
    *(("control", kind, content) for kind, content in SHELL.items()),
    *(("stdin", kind, content) for kind, content in (SHELL | READING).items()),
    *(("iopub", kind, content) for kind, content in (SHELL | READING).items()),
    ("iopub", "stream", {"name": "stdout", "text": "stolen"}),
    ("iopub", "status", {"execution_state": "dead"}),
]


async def refused(viewer: Channels, channel: str, msg_type: str, content: dict[str, Any]) -> str:
    """Send what may not be sent; check the answer; the message's id."""
    said = f"{msg_type} on {channel}"
    msg_id = await viewer.send(msg_type, content, channel=channel)
    answers = [
        message
        for message in await viewer.until(
            lambda m: (
                m["parent_header"].get("msg_id") == msg_id and m["content"].get("execution_state") == "idle"
            )
        )
        if message["parent_header"].get("msg_id") == msg_id
    ]
    busy, error, idle = answers
    assert busy["content"] == {"execution_state": "busy"}, said
    assert error["content"]["ename"] == "PermissionDenied", said
    assert msg_type in error["content"]["evalue"], said
    if channel in ("shell", "control") and msg_type.endswith("_request"):
        assert error["channel"] == channel, said
        assert error["header"]["msg_type"] == f"{msg_type.removesuffix('_request')}_reply", said
        assert error["content"]["status"] == "error", said
    else:
        assert (error["channel"], error["header"]["msg_type"]) == ("iopub", "error"), said
    assert idle["channel"] == "iopub", said
    return msg_id


@every_subprotocol
async def test_a_viewer_reads_and_nothing_else_reaches_the_kernel(
    subprotocol: str | None, gateway: Any, world: World
) -> None:
    """Every message that a viewer may not send is answered honestly, and the kernel never hears of it."""
    tenant = world.tenant
    async with (
        channels(gateway.url, tenant, tenant.owner.key, SUBPROTOCOLS["durable"]) as owner,
        channels(gateway.url, tenant, world.guest.key, subprotocol) as viewer,
    ):
        denied = {await refused(viewer, *message) for message in FORBIDDEN}
        for channel in ("shell", "control"):
            info = await viewer.answers(await viewer.send("kernel_info_request", {}, channel=channel))
            assert "kernel_info_reply" in [m["header"]["msg_type"] for m in info]
        for kind in ("comm_info_request", "is_complete_request"):
            got = await viewer.answers(await viewer.send(kind, READING[kind]))
            assert got[-1]["content"].get("ename") is None
        # The kernel tells every reader of each request that it takes up: none of the refused is among them.
        await owner.execute("print(kept)")
        marks = await owner.until(
            lambda m: m["header"]["msg_type"] == "stream" and m["content"]["text"].strip() == SECRET
        )
        assert denied.isdisjoint(m["parent_header"].get("msg_id") for m in marks)
        assert len(denied) == len(FORBIDDEN)
    listed = tenant.owner.client.made("GET", f"/api/v1/sandboxes/{tenant.sandbox}/files")["items"]
    assert "/workspace/stolen" not in [row["path"] for row in listed]


@every_subprotocol
async def test_a_viewer_cannot_answer_interrupt_or_end_what_the_owner_runs(
    subprotocol: str | None, gateway: Any, world: World
) -> None:
    tenant = world.tenant
    async with (
        channels(gateway.url, tenant, tenant.owner.key, SUBPROTOCOLS["v1"]) as owner,
        channels(gateway.url, tenant, world.guest.key, subprotocol) as viewer,
    ):
        asked = await owner.execute("print('got', input('?'), kept)", allow_stdin=True)
        question = (await owner.until(lambda m: m["channel"] == "stdin"))[-1]
        await refused(viewer, "stdin", "input_reply", {"value": "stolen"})
        for kind in ("interrupt_request", "shutdown_request"):
            await refused(viewer, "control", kind, {"restart": False})
        await owner.send("input_reply", {"value": "mine"}, channel="stdin", parent=question["header"])
        said = await owner.answers(asked)
        assert [m["content"]["status"] for m in said if m["channel"] == "shell"] == ["ok"]
        text = "".join(m["content"]["text"] for m in said if m["header"]["msg_type"] == "stream")
        assert text == f"got mine {SECRET}\n"


HEADER = (
    '"msg_id": "%s", "session": "s", "username": "u", "date": "2026-01-02T03:04:05.000006Z", "version": "5.4"'
)
TWICE = {
    "the forbidden one last": '{"msg_type": "kernel_info_request", "msg_type": "execute_request", %s}',
    "the forbidden one first": '{"msg_type": "execute_request", "msg_type": "kernel_info_request", %s}',
    "escaped and last": '{"msg_type": "kernel_info_request", "msg\\u005ftype": "execute_request", %s}',
    "escaped and first": '{"msg\\u005ftype": "execute_request", "msg_type": "kernel_info_request", %s}',
    "escaped value": '{"msg_type": "execute\\u005frequest", %s}',
}


@pytest.mark.parametrize("header", TWICE.values(), ids=list(TWICE))
@every_subprotocol
async def test_a_message_with_two_names_is_not_smuggled_in(
    subprotocol: str | None, header: str, gateway: Any, world: World
) -> None:
    """What the gateway judges is what the kernel reads, however the header is written."""
    tenant = world.tenant
    raw = header % (HEADER % uuid.uuid4().hex)
    content = json.dumps(STEAL)
    if subprotocol is None:
        frame: str | bytes = (
            f'{{"channel": "shell", "header": {raw}, "parent_header": {{}}, "metadata": {{}}, '
            f'"content": {content}, "msg_type": "kernel_info_request", "buffers": []}}'
        )
    else:
        frame = pack("shell", [raw.encode(), b"{}", b"{}", content.encode()])
    async with channels(gateway.url, tenant, world.guest.key, subprotocol) as viewer:
        await viewer.socket.send(frame)
        with contextlib.suppress(ConnectionClosed):
            await viewer.until(lambda m: m["content"].get("execution_state") == "idle")
        assert viewer.socket.close_code in (None, 1007)
    assert tenant.owner.client.output(tenant.sandbox, "print(kept, end='')") == SECRET


@every_subprotocol
@pytest.mark.parametrize(
    "frame", ["{}", "[]", "nonsense", b"", bytes(7), b"\xff" * 64, '{"header": {}}'], ids=repr
)
async def test_garbage_ends_its_own_socket_only(
    subprotocol: str | None, frame: str | bytes, gateway: Any, world: World
) -> None:
    tenant = world.tenant
    async with channels(gateway.url, tenant, tenant.owner.key, subprotocol) as mine:
        await mine.socket.send(frame)
        code, reason = await mine.closed()
        assert code in (1003, 1007), reason
        assert reason
    assert tenant.owner.client.output(tenant.sandbox, "print(kept, end='')") == SECRET


# -- the stream of the REST API ------------------------------------------------------------------------------


async def test_a_viewer_may_only_ping_on_the_stream(gateway: Any, world: World) -> None:
    tenant = world.tenant
    before = tenant.owner.client.made("GET", f"/api/v1/sandboxes/{tenant.sandbox}/executions")
    async with stream(gateway.url, tenant, world.guest.key) as viewer:
        for mode, content in (("code", "kept = 'stolen'"), ("command", "echo > /workspace/stolen")):
            execution = uuid.uuid4().hex
            await viewer.send({"type": "execute", "executionId": execution, "mode": mode, "content": content})
            error = await viewer.receive("error")
            assert (error["code"], error["executionId"]) == ("forbidden", execution)
        for target in (tenant.values["execution_id"], tenant.values["command_id"], "never-made"):
            await viewer.send({"type": "cancel", "executionId": target})
            assert (await viewer.receive("error"))["code"] == "forbidden"
        await viewer.send({"type": "ping", "timestamp": 5})
        assert (await viewer.receive("pong"))["timestamp"] == 5
    assert tenant.owner.client.made("GET", f"/api/v1/sandboxes/{tenant.sandbox}/executions") == before


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "nonsense",
        "[]",
        "null",
        "1e999",
        b"\xff\xfe",
        "[" * 100_000,
        {"type": "shutdown"},
        {"type": "execute"},
        {"type": "execute", "content": 1},
        {"type": "execute", "content": "1", "timeout": -1},
        {"type": "execute", "content": "1", "timeout": 1e300},
        {"type": "execute", "content": "1", "executionId": "../../etc"},
        {"type": "execute", "content": "1", "env": {"A=B": "1"}},
        {"type": "execute", "content": "1", "context": "never-made"},
        {"type": "cancel", "executionId": None},
        {"type": "cancel", "executionId": "never-made"},
        {"type": "ping", "timestamp": "now"},
    ],
    ids=lambda frame: str(frame)[:40],
)
async def test_a_bad_message_gets_an_error_and_the_stream_goes_on(
    frame: Any, gateway: Any, world: World
) -> None:
    async with stream(gateway.url, world.tenant, world.tenant.owner.key) as mine:
        await mine.send(frame)
        error = await mine.receive("error")
        assert error["code"] in ("invalid_request", "not_found")
        assert error["message"]
        await mine.send({"type": "ping"})
        await mine.receive("pong")
