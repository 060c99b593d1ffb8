"""Clients of a gateway that stops, dies and comes back; and kernels that end by another way."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

DURABLE = "v1.durable.llmsafespace.dev"
V1 = "v1.kernel.websocket.jupyter.org"


def stdout(messages: list[dict[str, Any]]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["header"]["msg_type"] == "stream")


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_client_goes_on_after_the_gateway_came_back(
    own_gateway: Any, make_api: Any, how: str
) -> None:
    """SIGTERM says 1012, SIGKILL says nothing; either way the execution goes on and nothing is lost."""
    api = make_api(own_gateway.url, own_gateway.key("ada"))
    kernel = (await api.start())["id"]
    msg_id = uuid.uuid4().hex
    code = "import time\nfor n in range(30):\n    print(n, flush=True)\n    time.sleep(0.05)"
    async with api.channels(kernel, DURABLE) as channels:
        await channels.execute(code, msg_id=msg_id)
        got = await channels.until(lambda m: m["header"]["msg_type"] == "stream")
        await asyncio.to_thread(getattr(own_gateway, how))
        if how == "stop":
            while True:
                try:
                    got.append(await channels.receive())
                except Exception:
                    break
            assert (await channels.closed())[0] == 1012
    await asyncio.to_thread(own_gateway.start)
    last = max(m["seq"] for m in got)
    async with api.channels(kernel, DURABLE, session=channels.session, after=last) as channels:
        await channels.execute(code, msg_id=msg_id)  # the same id: it does not run again
        rest = await channels.answers(msg_id)
    seen = {m["seq"]: m for m in [*got, *rest] if m["parent_header"].get("msg_id") == msg_id}
    assert stdout([seen[seq] for seq in sorted(seen)]) == "".join(f"{n}\n" for n in range(30))


async def test_a_further_context_is_a_kernel_too(api: Any) -> None:
    kernel = await api.start()
    sandbox = kernel["sandbox"]["id"]
    made = await api.request("POST", f"/api/v1/sandboxes/{sandbox}/contexts", {"language": "python"})
    assert made.status_code in (200, 201), made.text
    further = made.json()["id"]
    assert {kernel["id"], further} <= {
        each["id"] for each in (await api.request("GET", "/api/kernels")).json()
    }
    async with api.channels(further, V1) as channels, api.channels(kernel["id"], V1) as default:
        await channels.run("x = 'further'")
        assert stdout(await channels.run("print(x)")) == "further\n"
        assert stdout(await default.run("print('x' in globals())")) == "False\n"
        assert (await api.request("DELETE", f"/api/kernels/{further}")).status_code == 204
        dead = await channels.until(lambda m: m["content"].get("execution_state") == "dead")
        assert dead
        assert (await channels.closed())[0] == 4410
        assert stdout(await default.run("print(1)")) == "1\n"
    assert (await api.request("GET", f"/api/kernels/{further}")).status_code == 404


async def test_a_grant_opens_a_kernel_and_its_end_closes_it(api: Any, api_for: Any) -> None:
    guest = api_for("jupyter-guest")
    admin = api_for("jupyter-admin", "admin")
    kernel = await api.start()
    user = (await guest.request("GET", "/api/v1/user")).json()["id"]
    body = {"sandboxId": kernel["sandbox"]["id"], "userId": user, "level": "viewer"}
    granted = await admin.request("POST", "/api/v1/grants", body)
    assert granted.status_code == 201, granted.text
    assert kernel["id"] in [each["id"] for each in (await guest.request("GET", "/api/kernels")).json()]
    assert (await guest.request("DELETE", f"/api/kernels/{kernel['id']}")).status_code == 403
    assert (await guest.request("POST", f"/api/kernels/{kernel['id']}/restart")).status_code == 403
    async with guest.channels(kernel["id"], V1) as channels:
        denied = await channels.run("1")
        assert "PermissionDenied" in [m["content"].get("ename") for m in denied]
        ended = await admin.request("DELETE", f"/api/v1/grants/{granted.json()['id']}")
        assert ended.status_code == 204
        assert (await channels.closed())[0] == 4401
    assert (await guest.request("GET", f"/api/kernels/{kernel['id']}")).status_code == 404
