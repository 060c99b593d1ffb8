"""A session belongs to its principal: the same name, or the same id, used by somebody else is another one."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from tests.integration.jupyter.conftest import Channels
from tests.security.conftest import World
from tests.security.sockets import SUBPROTOCOLS, channels
from tests.security.support import in_rest_shape

every_subprotocol = pytest.mark.parametrize("subprotocol", SUBPROTOCOLS.values(), ids=list(SUBPROTOCOLS))
PRIVATE = "only-for-its-asker"
EVERYTHING = {
    "code": f"input({PRIVATE!r})",
    "silent": False,
    "store_history": True,
    "user_expressions": {"x": f"{PRIVATE!r}"},
    "allow_stdin": True,
    "stop_on_error": False,
}


async def _owner_asks(owner: Channels) -> str:
    """An execution that asks for input and evaluates an expression, and a look at the history."""
    msg_id = await owner.send("execute_request", EVERYTHING)
    asked = (await owner.until(lambda m: m["header"]["msg_type"] == "input_request"))[-1]
    assert asked["content"]["prompt"] == PRIVATE
    answer = {"status": "ok", "value": "x"}
    await owner.send("input_reply", answer, channel="stdin", parent=asked["header"])
    reply = next(m for m in await owner.answers(msg_id) if m["channel"] == "shell")
    assert PRIVATE in json.dumps(reply["content"]["user_expressions"])
    history = {"output": False, "raw": True, "hist_access_type": "tail", "n": 5}
    await owner.answers(await owner.send("history_request", history))
    return msg_id


async def _everything(socket: Channels, until: str) -> list[dict[str, Any]]:
    """What comes up to the answer to a request of one's own."""
    return await socket.until(lambda m: m["channel"] == "shell" and m["parent_header"].get("msg_id") == until)


def _private(messages: list[dict[str, Any]], own: set[str]) -> list[Any]:
    """What is not for everybody, but for what was asked here."""
    return [
        (message["channel"], message["header"]["msg_type"])
        for message in messages
        if message["channel"] != "iopub" and message["parent_header"].get("msg_id") not in own
    ]


@every_subprotocol
@pytest.mark.parametrize("who", ["guest", "helper"])
async def test_the_owners_session_id_is_a_guests_own_session(
    subprotocol: str | None, who: str, gateway: Any, world: World
) -> None:
    """In the URL and in the headers of messages, live and on connecting again: iopub, and nothing else."""
    guest = getattr(world, who)
    async with channels(gateway.url, world.tenant, world.tenant.owner.key, subprotocol) as owner:
        session = f"&session_id={owner.session}"
        async with channels(gateway.url, world.tenant, guest.key, subprotocol, session) as spy:
            spy.session = owner.session  # also in its messages
            first = await spy.send("kernel_info_request", {})
            await _everything(spy, first)
            await _owner_asks(owner)
            second = await spy.send("kernel_info_request", {})
            seen = await _everything(spy, second)
            assert _private(seen, {first, second}) == []
            assert any(m["header"]["msg_type"] == "execute_input" for m in seen)
    replayed = session + ("&after=0" if subprotocol is not None else "")
    async with channels(gateway.url, world.tenant, guest.key, subprotocol, replayed) as spy:
        spy.session = owner.session
        third = await spy.send("kernel_info_request", {})
        assert _private(await _everything(spy, third), {first, second, third}) == []


async def test_an_empty_session_is_not_everybodys(gateway: Any, world: World) -> None:
    """Replies to a message whose header names no session go to its sender alone."""
    async with (
        channels(gateway.url, world.tenant, world.tenant.owner.key) as owner,
        channels(gateway.url, world.tenant, world.guest.key) as spy,
    ):
        owner.session = spy.session = ""
        await _owner_asks(owner)
        mine = await spy.send("kernel_info_request", {})
        assert _private(await _everything(spy, mine), {mine}) == []


async def test_a_guests_acks_leave_the_owners_cursor(gateway: Any, world: World) -> None:
    """The owner is away, a guest reads all as the same session: the owner still gets what it missed."""
    session = uuid.uuid4().hex
    same = f"&session_id={session}"
    key, text = world.tenant.owner.key, uuid.uuid4().hex
    async with channels(gateway.url, world.tenant, key, query=same) as owner:
        await owner.answers(await owner.send("kernel_info_request", {}))
        await asyncio.sleep(0.3)  # the acknowledgement of what was read is sent a moment later
    async with channels(gateway.url, world.tenant, world.guest.key, query=same) as spy:
        async with channels(gateway.url, world.tenant, key) as other:
            await other.run(f"print({text!r})")
        await spy.until(lambda m: text in str(m["content"].get("text")))
        await asyncio.sleep(0.3)
    async with channels(gateway.url, world.tenant, key, query=same) as owner:
        mine = await owner.send("kernel_info_request", {})
        missed = await _everything(owner, mine)
    assert any(text in str(message["content"].get("text")) for message in missed)


async def test_a_request_with_somebody_elses_msg_id_is_refused(gateway: Any, world: World) -> None:
    """Guests see ids on iopub: one that is used again neither gets the answer nor disturbs its execution."""
    async with (
        channels(gateway.url, world.tenant, world.tenant.owner.key, SUBPROTOCOLS["durable"]) as owner,
        channels(gateway.url, world.tenant, world.guest.key, SUBPROTOCOLS["durable"]) as spy,
    ):
        msg_id = await _owner_asks(owner)
        spy.session = owner.session
        await spy.send("kernel_info_request", {}, msg_id=msg_id)
        mine = await spy.send("kernel_info_request", {})
        assert _private(await _everything(spy, mine), {mine}) == []
        assert "somebody else" in json.dumps(spy.texts)


def test_rest_streams_of_an_execution_keep_its_prompts_from_others(world: World) -> None:
    """The owner's events have the input request; a guest's and an admin's have the output."""
    mine, base = world.tenant.owner.client, f"/api/v1/sandboxes/{world.tenant.sandbox}"
    execution = uuid.uuid4().hex
    body = {"content": f"print(input({PRIVATE!r}))", "stdin": "typed\n", "executionId": execution}
    assert "typed" in mine.made("POST", f"{base}/execute", body)["stdout"]
    path = f"{base}/executions/{execution}/events"

    def events(person: Any) -> list[Any]:
        return [json.loads(line) for line in person.client.get(path).text.splitlines()]

    own, seen = events(world.tenant.owner), events(world.guest)
    assert any(event["type"] == "input_request" for event in own)
    assert not any(event["type"] == "input_request" for event in seen)
    assert PRIVATE not in json.dumps([event for event in seen if event["type"] != "stdout"])
    assert any("typed" in event.get("text", "") for event in seen)
    assert seen[-1]["end"] == own[-1]["end"] == "ok"


def test_an_execution_id_is_its_users_own(world: World, operator: Any) -> None:
    """A colleague who may run code does not get the answer to the owner's request by sending it again."""
    mine, base = world.tenant.owner.client, f"/api/v1/sandboxes/{world.tenant.sandbox}"
    body = {"content": "print('once')", "executionId": uuid.uuid4().hex}
    assert mine.made("POST", f"{base}/execute", body)["stdout"] == "once\n"
    assert mine.made("POST", f"{base}/execute", body)["stdout"] == "once\n"
    partner = operator.person(world.tenant.name, "developer", "partner")
    grant = {"sandboxId": world.tenant.sandbox, "userId": partner.id, "level": "developer"}
    made = mine.made("POST", "/api/v1/grants", grant)
    in_rest_shape(partner.client.post(f"{base}/execute", json=body), 409, "conflict")
    mine.delete(f"/api/v1/grants/{made['id']}")
