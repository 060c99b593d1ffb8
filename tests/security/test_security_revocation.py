"""Revoked means revoked: what a key, or a grant, has open closes soon after, and stays closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.security.conftest import World
from tests.security.sockets import CHANNELS_PATH, STREAM_PATH, SUBPROTOCOLS, dial
from tests.security.support import DEADLINE, Client, Strangers, in_shape, until

OPENED = {f"channels, {name}": (CHANNELS_PATH, protocol) for name, protocol in SUBPROTOCOLS.items()}
OPENED["stream"] = (STREAM_PATH, None)


async def open_all(gateway: Any, world: World, key: str) -> dict[str, Any]:
    """One socket of each kind with that key."""
    return {
        name: await dial(gateway.url, path.format(**world.tenant.values), key, subprotocol=protocol)
        for name, (path, protocol) in OPENED.items()
    }


async def all_closed(sockets: dict[str, Any]) -> None:
    """Wait until the gateway has closed every one of them, saying why."""
    for name, socket in sockets.items():
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()
        assert socket.close_code == 4401, name
        assert "no longer valid" in socket.close_reason or "revoked" in socket.close_reason, name


async def none_opens(gateway: Any, world: World, key: str, status: int) -> None:
    """With that key no socket can be opened."""
    for path, protocol in OPENED.values():
        with pytest.raises(InvalidStatus) as refused:
            await dial(gateway.url, path.format(**world.tenant.values), key, subprotocol=protocol)
        assert refused.value.response.status_code == status


async def test_a_key_revoked_by_another_process_closes_its_sockets(
    gateway: Any, world: World, strangers: Strangers
) -> None:
    key = world.operator.key(world.tenant.owner.id)
    sockets = await open_all(gateway, world, key["key"])
    others = await open_all(gateway, world, world.tenant.owner.key)
    await asyncio.to_thread(gateway.revoke, key["id"])
    await all_closed(sockets)
    await none_opens(gateway, world, key["key"], 401)
    in_shape(strangers.request("GET", "/api/v1/user", key["key"]), 401, "unauthorized")
    for name, socket in others.items():  # another key of the same user stays
        await (await socket.ping())
        await socket.close()
        assert socket.close_code == 1000, name


async def test_a_key_revoked_through_the_api_closes_its_sockets(gateway: Any, world: World) -> None:
    key = world.operator.key(world.tenant.owner.id)
    sockets = await open_all(gateway, world, key["key"])
    answer = world.tenant.owner.client.delete(f"/api/v1/user/apikeys/{key['id']}")
    assert answer.status_code == 204
    await all_closed(sockets)
    await none_opens(gateway, world, key["key"], 401)


async def test_an_expired_key_closes_its_sockets(gateway: Any, world: World) -> None:
    key = world.operator.key(world.tenant.owner.id, expiresIn=3)
    sockets = await open_all(gateway, world, key["key"])
    await all_closed(sockets)
    await none_opens(gateway, world, key["key"], 401)


async def test_a_grant_taken_back_closes_the_guests_sockets(gateway: Any, world: World) -> None:
    guest = world.operator.person(world.tenant.name, "viewer", "passing-guest")
    wanted = {"sandboxId": world.tenant.sandbox, "userId": guest.id}
    grant = world.tenant.owner.client.made("POST", "/api/v1/grants", wanted)
    sockets = await open_all(gateway, world, guest.key)
    world.tenant.owner.client.delete(f"/api/v1/grants/{grant['id']}")
    await all_closed(sockets)
    await none_opens(gateway, world, guest.key, 404)


async def test_a_lowered_role_closes_what_the_higher_one_had_open(gateway: Any, world: World) -> None:
    person = world.operator.person(world.tenant.name, "admin", "once-an-admin")
    sockets = await open_all(gateway, world, person.key)
    world.operator.admin.made("PATCH", f"/api/v1/users/{person.id}", {"role": "viewer"})
    await all_closed(sockets)
    await none_opens(gateway, world, person.key, 404)


@pytest.fixture
def running(world: World) -> Iterator[str]:
    """A command that goes on until it is killed."""
    base = f"/api/v1/sandboxes/{world.tenant.sandbox}"
    body = {"command": "while sleep 0.05; do echo tick; done", "background": True}
    made = world.tenant.owner.client.made("POST", f"{base}/commands", body)
    yield made["id"]
    world.tenant.owner.client.delete(f"{base}/commands/{made['id']}")


def test_a_revoked_key_ends_its_event_streams(gateway: Any, world: World, running: str) -> None:
    """A stream of events over plain HTTP is something that is open, too."""
    key = world.operator.key(world.tenant.owner.id)
    path = f"/api/v1/sandboxes/{world.tenant.sandbox}/commands/{running}/events"
    with Client(gateway.url, key["key"]) as client, client.stream("GET", path) as answer:
        lines = answer.iter_lines()
        next(lines)
        gateway.revoke(key["id"])
        end_of(lines)


def end_of(lines: Iterator[str]) -> None:
    """Wait until a stream of events is cut off: it does not end as if it were whole."""

    def cut() -> bool:
        try:
            line = json.loads(next(lines))
        except httpx.RemoteProtocolError:
            return True
        assert line["type"] != "end"
        return False

    until(cut, "the stream is cut off")


def test_a_revoked_key_ends_its_waiting_requests(gateway: Any, world: World, running: str) -> None:
    key = world.operator.key(world.tenant.owner.id)
    path = f"/api/v1/sandboxes/{world.tenant.sandbox}/commands/{running}?wait=true"

    async def wait() -> httpx.Response:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=DEADLINE) as client:
            asked = asyncio.create_task(client.get(path, headers={"Authorization": f"Bearer {key['key']}"}))
            await asyncio.to_thread(gateway.revoke, key["id"])
            return await asked

    in_shape(asyncio.run(wait()), 401, "unauthorized")


def test_what_a_revoked_key_made_stays_its_users(gateway: Any, world: World) -> None:
    """Revocation ends a key, not the work of its user."""
    key = world.operator.key(world.tenant.owner.id)
    with Client(gateway.url, key["key"]) as client:
        box = client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    gateway.revoke(key["id"])
    mine = world.tenant.owner.client
    assert mine.output(box, "print(1)") == "1\n"
    assert mine.delete(f"/api/v1/sandboxes/{box}").status_code == 204
