"""The channels websocket, on a real gateway with real kernels."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from llmsafespace_protocol.kernel_messages import pack

V1 = "v1.kernel.websocket.jupyter.org"
DURABLE = "v1.durable.llmsafespace.dev"
SUBPROTOCOLS = pytest.mark.parametrize(
    "subprotocols", [(), (V1,), (DURABLE,)], ids=["legacy", "v1", "durable"]
)
MIB = 1024 * 1024
DISPLAY = "from IPython.display import display\n"


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [message["header"]["msg_type"] for message in messages]


def stdout(messages: list[dict[str, Any]]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream")


def reply(messages: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [m for m in messages if m["header"]["msg_type"] == "execute_reply"]
    return dict(found["content"])


@pytest.fixture
async def kernel(api: Any) -> str:
    return str((await api.start())["id"])


@SUBPROTOCOLS
async def test_execute(api: Any, kernel: str, subprotocols: Any) -> None:
    async with api.channels(kernel, *subprotocols) as channels:
        assert channels.socket.subprotocol == (subprotocols[0] if subprotocols else None)
        info = await channels.answers(await channels.send("kernel_info_request", {}))
        assert "kernel_info_reply" in kinds(info)
        got = await channels.run("print('ü' * 3); 6 * 7")
        assert kinds(got)[:2] == ["status", "execute_input"]
        assert stdout(got) == "üüü\n"
        (result,) = [m for m in got if m["header"]["msg_type"] == "execute_result"]
        assert result["content"]["data"]["text/plain"] == "42"
        assert reply(got)["status"] == "ok"
        one = await api.request("GET", f"/api/kernels/{kernel}")
        assert (one.json()["connections"], one.json()["execution_state"]) == (1, "idle")


async def test_the_best_subprotocol_wins(api: Any, kernel: str) -> None:
    async with api.channels(kernel, "other", V1, DURABLE) as channels:
        assert channels.socket.subprotocol == DURABLE


async def test_a_browser_gives_its_key_in_the_query(api: Any, kernel: str) -> None:
    url = f"ws{api.url.removeprefix('http')}/api/kernels/{kernel}/channels?token={api.key}"
    async with connect(url, proxy=None, origin="https://elsewhere.example") as socket:  # type: ignore[arg-type]
        await socket.ping()


@SUBPROTOCOLS
async def test_buffers_both_ways(api: Any, kernel: str, subprotocols: Any) -> None:
    code = (
        "def opened(comm, message):\n"
        "    comm.send({'n': len(message['buffers'])}, buffers=[bytes(message['buffers'][0])[::-1], b''])\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)"
    )
    async with api.channels(kernel, *subprotocols) as channels:
        assert reply(await channels.run(code))["status"] == "ok"
        content = {"comm_id": uuid.uuid4().hex, "target_name": "echo", "data": {}}
        await channels.send("comm_open", content, buffers=(b"\x00\x01\xfe", b"second"))
        got = await channels.until(lambda m: m["header"]["msg_type"] == "comm_msg")
        assert got[-1]["content"]["data"] == {"n": 2}
        assert [bytes(buffer) for buffer in got[-1]["buffers"]] == [b"\xfe\x01\x00", b""]


@SUBPROTOCOLS
async def test_input(api: Any, kernel: str, subprotocols: Any) -> None:
    async with (
        api.channels(kernel, *subprotocols) as channels,
        api.channels(kernel, V1) as other,
    ):
        await other.answers(await other.send("kernel_info_request", {}))
        msg_id = await channels.execute("print(input('who? '))", allow_stdin=True)
        asked = await channels.until(lambda m: m["header"]["msg_type"] == "input_request")
        assert asked[-1]["content"]["prompt"] == "who? "
        answer = {"value": "bob"}
        await channels.send("input_reply", answer, channel="stdin", parent=asked[-1]["header"])
        assert stdout(await channels.answers(msg_id)) == "bob\n"
        # The other session saw the output, but neither the question nor the reply.
        seen = await other.until(
            lambda m: (
                m["content"].get("execution_state") == "idle" and m["parent_header"].get("msg_id") == msg_id
            )
        )
        assert {m["channel"] for m in seen if m["parent_header"].get("msg_id") == msg_id} == {"iopub"}


async def test_interrupt_keeps_variables(api: Any, kernel: str) -> None:
    async with api.channels(kernel, V1) as channels:
        await channels.run("kept = 'here'")
        msg_id = await channels.execute("print('begun', flush=True)\nimport time\ntime.sleep(600)")
        await channels.until(lambda m: m["header"]["msg_type"] == "stream")
        assert (await api.request("POST", f"/api/kernels/{kernel}/interrupt")).status_code == 204
        assert reply(await channels.answers(msg_id))["ename"] == "KeyboardInterrupt"
        assert stdout(await channels.run("print(kept)")) == "here\n"


async def test_restart_forgets_and_goes_on(api: Any, kernel: str) -> None:
    async with api.channels(kernel, V1) as channels:
        await channels.run("gone = 1")
        assert (await api.request("POST", f"/api/kernels/{kernel}/restart")).status_code == 200
        assert reply(await channels.run("gone"))["ename"] == "NameError"


async def test_a_dying_kernel_ends_its_execution(api: Any, kernel: str) -> None:
    async with api.channels(kernel, V1) as channels:
        got = await channels.run("import os; os._exit(3)")
        assert reply(got)["ename"] == "KernelDied"
        if not any(m["content"].get("execution_state") == "dead" for m in got):
            await channels.until(lambda m: m["content"].get("execution_state") == "dead")


async def test_replay_from_a_sequence_number(api: Any, kernel: str) -> None:
    async with api.channels(kernel, DURABLE) as channels:
        got = await channels.run("for n in range(3): print(n, flush=True)")
        session, middle = channels.session, got[len(got) // 2]["seq"]
    assert [m["seq"] for m in got] == sorted(m["seq"] for m in got)
    async with api.channels(kernel, DURABLE, session=session, after=middle) as channels:
        again = await channels.until(lambda m: m["seq"] == max(each["seq"] for each in got))
        assert again == [m for m in got if m["seq"] > middle]
    async with api.channels(kernel, DURABLE, after=0) as channels:
        everything = await channels.until(lambda m: m["content"].get("execution_state") == "idle")
        assert everything[0]["seq"] >= 1
    for after in ("999999999", "-1", "x", "9" * 30):
        with pytest.raises(InvalidStatus) as refused:
            async with api.channels(kernel, DURABLE, after=after):
                pass
        assert refused.value.response.status_code in (400, 409)
        assert json.loads(refused.value.response.body or b"")["message"]


async def test_the_same_request_runs_once(api: Any, kernel: str) -> None:
    msg_id = uuid.uuid4().hex
    async with api.channels(kernel, DURABLE) as channels:
        await channels.run("runs = 0")
        await channels.run("runs += 1; print(runs)", msg_id=msg_id)
        session = channels.session
    async with api.channels(kernel, DURABLE, session=session) as channels:
        assert stdout(await channels.run("runs += 1; print(runs)", msg_id=msg_id)) == "1\n"
        assert stdout(await channels.run("print(runs)")) == "1\n"


async def test_a_session_that_comes_back_misses_nothing(api: Any, kernel: str) -> None:
    """What a plain Jupyter client missed while it was away arrives when it is back."""
    async with api.channels(kernel, V1) as channels:
        session = channels.session
        await channels.run("import os, time")
        msg_id = await channels.execute(
            "print('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('late')"
        )
        await channels.until(lambda m: m["header"]["msg_type"] == "stream")
    row = (await api.request("GET", f"/api/kernels/{kernel}")).json()
    answer = await api.request(
        "PUT", f"/api/v1/sandboxes/{row['sandbox']['id']}/files/workspace/go", content=b""
    )
    assert answer.status_code < 300, answer.text
    async with api.channels(kernel, V1, session=session) as channels:
        got = await channels.answers(msg_id)
        assert stdout(got) == "late\n"
        assert reply(got)["status"] == "ok"


async def test_a_stalled_reader_costs_no_memory(api: Any, kernel: str, gateway: Any) -> None:
    """The journal keeps at most its quota for a stopped reader; the gateway keeps next to nothing."""
    process = psutil.Process(gateway.pid)
    code = DISPLAY + "for n in range(120): display({'text/plain': 'x' * 2**20}, raw=True)"
    async with (
        api.channels(kernel, DURABLE, max_queue=1) as stalled,
        api.channels(kernel, DURABLE) as watcher,
    ):
        await stalled.answers(await stalled.send("kernel_info_request", {}))
        before = process.memory_info().rss
        got = await watcher.run(code)
        assert kinds(got).count("display_data") == 120
        assert process.memory_info().rss - before < 64 * MIB
        late = await stalled.until(
            lambda m: (
                m["content"].get("execution_state") == "idle"
                and m["parent_header"] == got[-1]["parent_header"]
            )
        )
        assert kinds(late).count("display_data") == 120
        assert stalled.texts == []


@SUBPROTOCOLS
async def test_garbage_closes_the_socket_and_nothing_else(api: Any, kernel: str, subprotocols: Any) -> None:
    header = b'{"msg_id": "a", "msg_type": "execute_request"}'
    frames: list[str | bytes] = [b"", b"garbage", b"\xff" * 100, pack("shell", [b"{}", b"{}", b"{}", b"{}"])]
    frames += ["", "garbage", "[]", '{"header": {}}', pack("shell", [header[:-1], b"{}", b"{}", b"{}"])]
    for frame in frames:
        async with api.channels(kernel, *subprotocols) as channels:
            await channels.socket.send(frame)
            code, reason = await channels.closed()
            assert code in (1003, 1007), (frame, code)
            assert reason
    async with api.channels(kernel, *subprotocols) as channels:
        assert stdout(await channels.run("print(1)")) == "1\n"


async def test_a_revoked_key_closes_its_sockets(api: Any, api_for: Any, gateway: Any) -> None:
    doomed = api_for("jupyter-user", "developer", "default", "--expires", "1d")
    kernel = (await api.start())["id"]
    async with doomed.channels(kernel, V1) as channels, api.channels(kernel, V1) as other:
        await channels.run("1")
        key_id = doomed.key.split("_")[1]
        answer = await api.request("DELETE", f"/api/v1/user/apikeys/{key_id}")
        assert answer.status_code == 204, answer.text
        code, reason = await channels.closed()
        assert code == 4401
        assert reason
        assert stdout(await other.run("print(1)")) == "1\n"
    with pytest.raises(InvalidStatus) as refused:
        async with doomed.channels(kernel, V1):
            pass
    assert refused.value.response.status_code == 401


async def test_a_deleted_kernel_is_dead_to_its_clients(api: Any, kernel: str) -> None:
    async with api.channels(kernel, V1) as channels:
        await channels.run("1")
        assert (await api.request("DELETE", f"/api/kernels/{kernel}")).status_code == 204
        dead = await channels.until(lambda m: m["header"]["msg_type"] == "status")
        assert dead[-1]["content"] == {"execution_state": "dead"}
        code, reason = await channels.closed()
        assert code == 4410
        assert "terminated" in str(reason)
    with pytest.raises(InvalidStatus) as refused:
        async with api.channels(kernel, V1):
            pass
    assert refused.value.response.status_code == 410
    assert json.loads(refused.value.response.body or b"")["error"]["details"] == {"end": "terminated"}


async def test_who_may_connect(api: Any, api_for: Any, kernel: str) -> None:
    for other, status in (
        (api_for("jupyter-other"), 404),
        (api_for("jupyter-stranger", "admin", "elsewhere"), 404),
        (api_for("jupyter-user", "developer", "default", "--scopes", "files:read"), 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with other.channels(kernel, V1):
                pass
        assert refused.value.response.status_code == status


async def test_a_key_that_may_not_execute_is_told_so(api: Any, api_for: Any, kernel: str) -> None:
    reader = api_for("jupyter-user", "developer", "default", "--scopes", "sandboxes:read")
    async with reader.channels(kernel, V1) as channels, api.channels(kernel, V1) as owner:
        got = await channels.run("print('never')")
        assert reply(got)["ename"] == "PermissionDenied"
        assert stdout(got) == ""
        for msg_type, channel in (
            ("complete_request", "shell"),
            ("inspect_request", "shell"),
            ("history_request", "shell"),
            ("interrupt_request", "control"),
            ("shutdown_request", "control"),
            ("debug_request", "control"),
        ):
            msg_id = await channels.send(msg_type, {}, channel=channel)
            denied = [m for m in await channels.answers(msg_id) if m["channel"] == channel]
            assert denied[0]["content"]["ename"] == "PermissionDenied", msg_type
        info = await channels.answers(await channels.send("kernel_info_request", {}))
        assert "kernel_info_reply" in kinds(info)
        # It sees what others do.
        msg_id = await owner.execute("print('seen')")
        seen = await channels.until(
            lambda m: (
                m["content"].get("execution_state") == "idle" and m["parent_header"].get("msg_id") == msg_id
            )
        )
        assert stdout(seen) == "seen\n"


async def test_many_small_messages_all_arrive(api: Any, kernel: str) -> None:
    code = (
        "from IPython.display import display\nfor n in range(5000): display({'text/plain': str(n)}, raw=True)"
    )
    async with api.channels(kernel) as channels:
        got = await channels.run(code)
        shown = [m["content"]["data"]["text/plain"] for m in got if m["header"]["msg_type"] == "display_data"]
        assert shown == [str(n) for n in range(5000)]


async def test_clients_do_not_wait_for_each_other(api: Any, kernel: str) -> None:
    async with api.channels(kernel, DURABLE) as one, api.channels(kernel, DURABLE) as two:
        first, second = await asyncio.gather(one.run("print(1)"), two.run("print(2)"))
        assert (stdout(first), stdout(second)) == ("1\n", "2\n")


ODD = {
    "half a surrogate": r'{"code": "print(\"\ud83d\")"}',
    "no code": "{}",
    "code that is none": '{"code": 1}',
    "not a number": '{"code": "1", "silent": NaN}',
}


@SUBPROTOCOLS
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
async def test_an_odd_request_is_refused_alone(
    api: Any, kernel: str, subprotocols: Any, content: str
) -> None:
    async with api.channels(kernel, *subprotocols) as channels:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": channels.session}
        if subprotocols:
            parts = [json.dumps(header), "{}", "{}", content]
            await channels.socket.send(pack("shell", [part.encode() for part in parts]))
        else:
            parts = ["channel", '"shell"', "header", json.dumps(header), "content", content]
            members = [f'"{name}": {value}' for name, value in zip(parts[::2], parts[1::2], strict=True)]
            await channels.socket.send(f"{{{', '.join(members)}}}")
        if subprotocols != (DURABLE,):  # which has an error frame of its own
            refused = reply(await channels.answers(header["msg_id"]))
            assert (refused["status"], refused["ename"]) == ("error", "InvalidRequest")
        assert stdout(await channels.run("print(1)")) == "1\n"
        if subprotocols == (DURABLE,):
            (told,) = channels.texts
            assert told["error"]["details"]["execution"] == header["msg_id"]
