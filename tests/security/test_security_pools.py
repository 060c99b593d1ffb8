"""Whose code runs in a sandbox: its owner's, the operator's, and what its owner or an admin chose."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_gateway
from tests.security.support import Operator, Person, in_jupyter_shape, in_rest_shape, until

SCRIPT = {"name": "evil", "content": "import builtins\nbuiltins.sum = lambda *_: 1337"}
SUM = "print(sum([1, 2]))"
POOLS = "/api/v1/warmpools"


@dataclass
class Poisoned:
    """A tenant with a pool whose preload script changes what `sum` answers, and the people around it."""

    name: str
    maker: Person
    colleague: Person
    admin: Person
    foreigner: Person
    foreign_admin: Person


@pytest.fixture(scope="module")
def poisoned(operator: Operator) -> Iterator[Poisoned]:
    made = Poisoned(
        f"evil-{uuid.uuid4().hex[:8]}",
        operator.person("pools-a", name="maker"),
        operator.person("pools-a", name="colleague"),
        operator.person("pools-a", "admin"),
        operator.person("pools-b", name="foreigner"),
        operator.person("pools-b", "admin"),
    )
    body = {"name": made.name, "runtime": "python", "minSize": 1, "maxSize": 2, "preloadScripts": [SCRIPT]}
    made.maker.client.made("POST", POOLS, body)
    _filled(made)
    yield made
    made.admin.client.delete(f"{POOLS}/{made.name}")


def _filled(poisoned: Poisoned) -> None:
    path = f"{POOLS}/{poisoned.name}/status"
    until(lambda: poisoned.maker.client.made("GET", path)["availablePods"] > 0, "the pool is warm")


def _summed(person: Person, **wanted: Any) -> tuple[dict[str, Any], str]:
    """How a sandbox of the person's started, and what it sums 1 and 2 up to."""
    box = person.client.made("POST", "/api/v1/sandboxes", {"runtime": "python"} | wanted)
    try:
        return box["start"], person.client.output(box["id"], SUM).strip()
    finally:
        person.client.delete(f"/api/v1/sandboxes/{box['id']}")


@pytest.mark.parametrize("who", ["maker", "colleague", "admin", "foreigner"])
def test_a_plain_sandbox_never_runs_a_pools_code(poisoned: Poisoned, who: str) -> None:
    start, said = _summed(getattr(poisoned, who))
    assert said == "3"
    assert start["pool"] != poisoned.name


def test_who_asks_for_it_gets_it_and_is_told_whose_it_is(poisoned: Poisoned) -> None:
    _filled(poisoned)
    start, said = _summed(poisoned.colleague, warmPool=poisoned.name)
    assert said == "1337"
    assert (start["kind"], start["pool"], start["poolOwner"]) == ("warm", poisoned.name, poisoned.maker.id)


def test_cold_of_a_named_pool_has_what_that_preloads(poisoned: Poisoned) -> None:
    start, said = _summed(poisoned.maker, warmPool=poisoned.name, env={"PYTHONHASHSEED": "0"})
    assert (start["kind"], start["pool"], said) == ("cold", poisoned.name, "1337")


def test_jupyter_kernels_are_plain_unless_they_ask(poisoned: Poisoned) -> None:
    """The pool is in the body's `warm_pool`; a session's kernel may ask too, env may not."""
    mine = poisoned.colleague.client
    for body, owner in (
        ({"env": {"KERNEL_WARM_POOL": poisoned.name}}, None),
        ({"warm_pool": poisoned.name}, poisoned.maker.id),
    ):
        kernel = mine.made("POST", "/api/kernels", {"name": "python3"} | body)
        assert (kernel["sandbox"]["start"]["pool"] == poisoned.name) == (owner is not None)
        said = mine.output(kernel["sandbox"]["id"], SUM).strip()
        assert said == ("3" if owner is None else "1337")
        mine.delete(f"/api/kernels/{kernel['id']}")
    wanted = {"path": f"{uuid.uuid4().hex}.ipynb", "type": "notebook", "kernel": {"name": "python3"}}
    session = mine.made("POST", "/api/sessions", wanted | {"warm_pool": poisoned.name})
    box = mine.made("GET", f"/api/kernels/{session['kernel']['id']}")["sandbox"]
    assert box["start"]["pool"] == poisoned.name
    mine.delete(f"/api/sessions/{session['id']}")
    in_jupyter_shape(mine.post("/api/kernels", json={"warm_pool": "nowhere"}), 404, "not_found")


def test_a_pool_of_another_tenant_is_none_at_all(poisoned: Poisoned) -> None:
    """404 by name, the same words as for one that does not exist, and no conflict with one's own."""
    theirs = poisoned.foreigner.client
    asked = {"runtime": "python", "warmPool": poisoned.name}
    for person in (poisoned.foreigner, poisoned.foreign_admin):
        refused = person.client.post("/api/v1/sandboxes", json=asked)
        in_rest_shape(refused, 404, "not_found")
        other = person.client.post("/api/v1/sandboxes", json=asked | {"warmPool": "none-at-all"})
        assert refused.text.replace(poisoned.name, "X") == other.text.replace("none-at-all", "X")
    assert theirs.made("GET", "/api/v1/sandboxes?status=running")["items"] == []
    own = theirs.made("POST", POOLS, {"name": poisoned.name, "runtime": "python", "minSize": 0})
    assert own["owner"] == poisoned.foreigner.id
    start, said = _summed(poisoned.foreigner, warmPool=poisoned.name)
    assert (start["kind"], start["poolOwner"], said) == ("cold", poisoned.foreigner.id, "3")
    in_rest_shape(theirs.post(POOLS, json={"name": poisoned.name, "runtime": "python"}), 409, "conflict")
    assert theirs.delete(f"{POOLS}/{poisoned.name}").status_code == 204
    assert poisoned.maker.client.made("GET", f"{POOLS}/{poisoned.name}")["owner"] == poisoned.maker.id


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"securityLevel": "high"}, "security level"),
        ({"resources": {"cpu": "4"}}, "cores"),
        ({"useWarmPool": False}, "useWarmPool"),
    ],
)
def test_a_named_pool_that_does_not_fit_is_refused(poisoned: Poisoned, wanted: Any, says: str) -> None:
    body = {"runtime": "python", "warmPool": poisoned.name}
    refused = poisoned.maker.client.post("/api/v1/sandboxes", json=body | wanted)
    in_rest_shape(refused, 400, "invalid_request")
    assert says in refused.text


def test_publishing_is_an_admins_act(poisoned: Poisoned) -> None:
    """Neither a new pool nor one's own is published by a developer, and a published one is no longer its."""
    path, body = f"{POOLS}/{poisoned.name}", {"runtime": "python", "minSize": 0}
    for person in (poisoned.maker, poisoned.colleague):
        mine = person.client
        in_rest_shape(mine.post(POOLS, json=body | {"name": "p", "published": True}), 403, "forbidden")
        in_rest_shape(mine.patch(path, json={"published": True}), 403, "forbidden")
    in_rest_shape(poisoned.colleague.client.patch(path, json={"preloadScripts": []}), 403, "forbidden")
    in_rest_shape(poisoned.colleague.client.delete(path), 403, "forbidden")
    assert poisoned.admin.client.made("PATCH", path, {"published": True})["published"]
    try:
        changes: tuple[dict[str, Any], ...] = ({"preloadScripts": []}, {"minSize": 2}, {"published": False})
        for change in changes:
            in_rest_shape(poisoned.maker.client.patch(path, json=change), 403, "forbidden")
        in_rest_shape(poisoned.maker.client.delete(path), 403, "forbidden")
        _filled(poisoned)
        start, said = _summed(poisoned.colleague)
        assert (start["pool"], start["poolOwner"], said) == (poisoned.name, "published", "1337")
        start, said = _summed(poisoned.foreigner)  # an admin's word counts in its own tenant
        assert (start["pool"] != poisoned.name, said) == (True, "3")
    finally:
        assert not poisoned.admin.client.made("PATCH", path, {"published": False})["published"]
    assert _summed(poisoned.colleague)[1] == "3"


def test_a_pool_with_code_takes_the_right_to_execute(poisoned: Poisoned, operator: Operator) -> None:
    """A key that may make pools and not execute makes pools that run nothing."""
    scopes = ["warmpools:read", "warmpools:write"]
    key = operator.client(operator.key(poisoned.maker.id, scopes=scopes)["key"])
    body = {"name": f"no-{uuid.uuid4().hex[:8]}", "runtime": "python", "minSize": 0}
    for code in ({"preloadScripts": [SCRIPT]}, {"preloadPackages": ["numpy"]}):
        in_rest_shape(key.post(POOLS, json=body | code), 403, "forbidden")
    key.made("POST", POOLS, body)
    path = f"{POOLS}/{body['name']}"
    in_rest_shape(key.patch(path, json={"preloadScripts": [SCRIPT]}), 403, "forbidden")
    in_rest_shape(key.patch(f"{POOLS}/{poisoned.name}", json={"minSize": 2}), 403, "forbidden")
    assert key.patch(path, json={"ttl": 60}).status_code == 200
    assert key.delete(path).status_code == 204


@pytest.fixture(scope="module")
def small() -> Iterator[Operator]:
    """A gateway where a tenant may have three sandboxes."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        Path(folder).chmod(0o755)
        made = make_gateway(Path(folder), warm_pools=[], quotas={"sandboxes": 3})
        operator = Operator(made.url, made.admin_key)
        operator.gateway = made  # type: ignore[attr-defined]
        yield operator
        operator.close()
        made.end_all()


def test_a_pool_counts_in_its_tenants_quota(small: Operator) -> None:
    """Made, scaled, grown by itself, restored at a start, and given back."""
    person = small.person("quota")
    mine, path = person.client, f"{POOLS}/p"
    body = {"name": "p", "runtime": "python"}
    in_rest_shape(mine.post(POOLS, json=body | {"minSize": 4}), 429, "quota_exceeded")
    in_rest_shape(mine.get(path), 404)
    mine.made("POST", POOLS, body | {"minSize": 2, "autoScaling": {"enabled": True, "targetUtilization": 1}})
    assert mine.made("GET", "/api/v1/user")["usage"]["sandboxes"] == 2
    in_rest_shape(mine.patch(path, json={"minSize": 4}), 429, "quota_exceeded")
    assert mine.made("GET", path)["minSize"] == 2
    box = mine.made("POST", "/api/v1/sandboxes", {"runtime": "python"})["id"]
    in_rest_shape(mine.post("/api/v1/sandboxes", json={"runtime": "python"}), 429, "quota_exceeded")
    time.sleep(1.5)  # it would want ninety-nine for the one in use
    there = mine.made("GET", f"{path}/status")
    assert there["availablePods"] + there["pendingPods"] <= 2
    small.gateway.kill()  # type: ignore[attr-defined]
    small.gateway.start()  # type: ignore[attr-defined]
    in_rest_shape(mine.post("/api/v1/sandboxes", json={"runtime": "python"}), 429, "quota_exceeded")
    assert mine.delete(path).status_code == 204
    assert mine.made("GET", "/api/v1/user")["usage"]["sandboxes"] == 1
    mine.made("POST", POOLS, body | {"minSize": 2})
    mine.delete(path)
    mine.delete(f"/api/v1/sandboxes/{box}")


@pytest.mark.parametrize(
    "wanted",
    [
        {"minSize": 1000, "resources": {"memory": "512Gi"}},
        {"minSize": 0, "resources": {"memory": "512Ti"}},
        {"minSize": 0, "resources": {"cpu": "1000"}},
        {"minSize": 0, "resources": {"ephemeralStorage": "900Ti"}},
        {"minSize": 10_000, "resources": {"memory": "1Mi"}},
    ],
    ids=["the pool", "memory", "cpu", "storage", "many small ones"],
)
def test_more_than_the_machine_has_is_refused(operator: Operator, wanted: dict[str, Any]) -> None:
    """With what there is; also by a later change."""
    mine = operator.person("large").client
    name = f"large-{uuid.uuid4().hex[:8]}"
    refused = mine.post(POOLS, json={"name": name, "runtime": "python"} | wanted)
    in_rest_shape(refused, 400, "invalid_request")
    assert "expected at most" in refused.text
    in_rest_shape(mine.get(f"{POOLS}/{name}"), 404)


def test_a_pool_is_not_scaled_beyond_the_machine(operator: Operator) -> None:
    mine, path = operator.person("scaled").client, f"{POOLS}/scaled"
    mine.made("POST", POOLS, {"name": "scaled", "runtime": "python", "minSize": 0})
    in_rest_shape(mine.patch(path, json={"minSize": 5000}), 400, "invalid_request")
    assert mine.made("GET", path)["minSize"] == 0
    mine.delete(path)
