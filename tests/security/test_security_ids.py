"""Ids that a client chooses: one that is somebody else's makes nothing, changes nothing and tells nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.security.conftest import World
from tests.security.support import Person, in_jupyter_shape, in_rest_shape


@pytest.fixture(scope="module")
def box(world: World) -> Iterator[str]:
    """A sandbox of somebody in another tenant."""
    made = world.foreigner.client.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    yield made
    world.foreigner.client.delete(f"/api/v1/sandboxes/{made}")


def _alive(world: World) -> None:
    """The owner's kernel is there, and remembers what it was told."""
    mine, base = world.tenant.owner.client, f"/api/v1/sandboxes/{world.tenant.sandbox}"
    assert mine.made("GET", f"/api/kernels/{world.tenant.kernel}")["id"] == world.tenant.kernel
    there = [context["id"] for context in mine.made("GET", f"{base}/contexts")["items"]]
    assert there == [world.tenant.kernel, world.tenant.values["context_id"]]
    assert "kept" in mine.output(world.tenant.sandbox, "print('kept' in globals() and 'kept')")


@pytest.mark.parametrize("which", ["kernel_id", "context_id"])
def test_a_context_with_the_id_of_another_tenants_kernel(world: World, box: str, which: str) -> None:
    theirs, taken = world.foreigner.client, world.tenant.values[which]
    path = f"/api/v1/sandboxes/{box}/contexts"
    before = theirs.made("GET", path)["items"]
    refused = theirs.post(path, json={"id": taken, "name": "mine"})
    in_rest_shape(refused, 409, "conflict")
    assert world.tenant.sandbox not in refused.text
    assert world.tenant.name not in refused.text
    assert theirs.made("GET", path)["items"] == before
    in_rest_shape(theirs.delete(f"{path}/{taken}"), 404, "not_found")
    in_rest_shape(theirs.post(f"{path}/{taken}/restart"), 404, "not_found")
    in_jupyter_shape(theirs.get(f"/api/kernels/{taken}"), 404, "not_found")
    _alive(world)


def test_the_words_are_those_for_ones_own_id(world: World, box: str) -> None:
    """Whose a taken id is cannot be read from the refusal."""
    theirs, path = world.foreigner.client, f"/api/v1/sandboxes/{box}/contexts"
    other = theirs.made("POST", "/api/v1/sandboxes", {"runtime": "python"})
    try:
        own = theirs.post(path, json={"id": other["kernelId"]})
        foreign = theirs.post(path, json={"id": world.tenant.kernel})
        assert (own.status_code, own.text) == (foreign.status_code, foreign.text)
    finally:
        theirs.delete(f"/api/v1/sandboxes/{other['id']}")


def test_a_context_that_is_refused_leaves_no_record(world: World, box: str) -> None:
    """One whose making fails in the sandbox, and the same id again once it can be made."""
    theirs, path, name = world.foreigner.client, f"/api/v1/sandboxes/{box}/contexts", str(uuid.uuid4())
    in_rest_shape(theirs.post(path, json={"id": name, "language": "cobol"}), 400, "invalid_request")
    assert name not in theirs.get("/api/kernels").text
    assert theirs.made("POST", path, {"id": name})["id"] == name
    assert theirs.made("POST", path, {"id": name})["id"] == name
    in_rest_shape(theirs.post(path, json={"id": name, "name": "other"}), 409, "conflict")
    assert theirs.made("GET", f"/api/kernels/{name}")["id"] == name
    assert theirs.delete(f"{path}/{name}").status_code == 204
    assert name not in theirs.get("/api/kernels").text


@pytest.mark.parametrize("who", ["foreigner", "foreign_admin", "colleague"])
def test_a_kernel_with_the_id_of_somebody_elses(world: World, who: str) -> None:
    person: Person = getattr(world, who)
    before = person.client.made("GET", "/api/v1/sandboxes")["items"]
    refused = person.client.post("/api/kernels", json={"name": "python3", "kernel_id": world.tenant.kernel})
    in_jupyter_shape(refused, 409, "conflict")
    assert world.tenant.sandbox not in refused.text
    assert person.client.made("GET", "/api/v1/sandboxes")["items"] == before
    _alive(world)


def test_a_session_on_somebody_elses_kernel(world: World) -> None:
    body = {"path": "x.ipynb", "type": "notebook", "kernel": {"id": world.tenant.kernel}}
    theirs = world.foreigner.client
    in_jupyter_shape(theirs.post("/api/sessions", json=body), 404, "not_found")
    for change in ({"name": "mine"}, {"kernel": {"id": world.tenant.kernel}}):
        path = f"/api/sessions/{world.tenant.values['session_id']}"
        in_jupyter_shape(theirs.patch(path, json=change), 404, "not_found")
    assert theirs.get("/api/sessions").raise_for_status().json() == []


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/api/v1/sandboxes", "sandbox_id"),
        ("/api/v1/grants", "grant_id"),
        ("/api/v1/users", "user_id"),
        ("/api/v1/user/apikeys", "key_id"),
    ],
)
def test_the_cursor_of_a_list_does_not_tell_who_has_what(world: World, path: str, known: str) -> None:
    """`after` with an id of another tenant's is as one that nobody has."""
    theirs = world.foreign_admin.client
    foreign = theirs.get(path, params={"after": world.tenant.values[known]})
    nobody = theirs.get(path, params={"after": "nobody"})
    assert (foreign.status_code, foreign.text) == (nobody.status_code, nobody.text)


def test_idempotency_keys_are_ones_own(world: World) -> None:
    """The same key of two people makes two sandboxes."""
    key = {"Idempotency-Key": uuid.uuid4().hex}
    made = {}
    for person in (world.foreigner, world.colleague):
        answer = person.client.post("/api/v1/sandboxes", json={"runtime": "python"}, headers=key)
        made[person.name] = answer.json()
        assert answer.json()["owner"] == person.id
    for person in (world.foreigner, world.colleague):
        person.client.delete(f"/api/v1/sandboxes/{made[person.name]['id']}")
    assert len({box["id"] for box in made.values()}) == 2


def test_ids_inside_a_sandbox_are_its_own(world: World, box: str) -> None:
    """An execution's, a command's or a context's id of another sandbox names nothing in this one."""
    theirs, base, values = world.foreigner.client, f"/api/v1/sandboxes/{box}", world.tenant.values
    for path in (
        f"executions/{values['execution_id']}",
        f"executions/{values['execution_id']}/events",
        f"commands/{values['command_id']}",
        f"commands/{values['command_id']}/events",
    ):
        in_rest_shape(theirs.get(f"{base}/{path}"), 404, "not_found")
    body = {"content": "1", "context": values["context_id"]}
    in_rest_shape(theirs.post(f"{base}/execute", json=body), 404, "not_found")
    body = {"content": "print(1)", "executionId": values["execution_id"]}
    assert theirs.made("POST", f"{base}/execute", body)["stdout"] == "1\n"


def test_names_of_users_and_keys_are_a_tenants_own(world: World) -> None:
    theirs = world.foreign_admin.client
    made = theirs.made("POST", "/api/v1/users", {"name": world.tenant.owner.name})
    assert made["tenant"] == "security-b"
    body = {"name": "x", "tenant": world.tenant.name}
    in_rest_shape(theirs.post("/api/v1/users", json=body), 403, "forbidden")
    in_rest_shape(theirs.delete(f"/api/v1/user/apikeys/{world.tenant.owner.key_id}"), 404, "not_found")
    in_rest_shape(theirs.patch(f"/api/v1/users/{world.tenant.owner.id}", json={"role": "viewer"}), 404)
