"""Every REST and every Jupyter route: who is let in, who is refused, and who learns nothing.

The cases are kept beside the route tables: a route without a case fails the first test.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from tornado.web import RequestHandler

from llmsafespace_gateway import jupyter
from llmsafespace_gateway.access.principal import ROLES
from llmsafespace_gateway.rest import API
from tests.security.conftest import World
from tests.security.support import SECRET, Client, Strangers, Tenant, in_shape

# What a route is about: one sandbox, another thing that has an owner, or only the caller and its tenant.
About = Literal["sandbox", "thing", "caller", "nobody"]


@dataclass(frozen=True)
class Case:
    """How to call a route, and what it may do.

    `scope` is what its key needs (`any`: any key will do). `reads`: a viewer with a grant may use it.
    """

    method: str
    path: str
    about: About
    scope: str
    reads: bool = False
    body: Any = None
    content: bytes | None = None

    def url(self, values: dict[str, str]) -> str:
        return self.path.format(**values)

    def ask(self, client: Client, values: dict[str, str]) -> Any:
        if self.content is not None:
            return client.request(self.method, self.url(values), content=self.content)
        if self.body is None:
            return client.request(self.method, self.url(values))
        body = {k: v.format(**values) if isinstance(v, str) else v for k, v in self.body.items()}
        return client.request(self.method, self.url(values), json=body)


def rest(method: str, path: str, about: About, scope: str, **more: Any) -> Case:
    return Case(method, f"/api/v1{path}", about, scope, **more)


BOX = "/sandboxes/{sandbox_id}"
RUN, COMMAND, CONTEXT = (
    f"{BOX}/executions/{{execution_id}}",
    f"{BOX}/commands/{{command_id}}",
    f"{BOX}/contexts",
)
READ, WRITE, EXECUTE, ADMIN = "sandboxes:read", "sandboxes:write", "execute", "admin"

REST = [
    rest("GET", "/sandboxes", "caller", READ, reads=True),
    rest("POST", "/sandboxes", "caller", WRITE, body={"runtime": "python"}),
    rest("GET", BOX, "sandbox", READ, reads=True),
    rest("PATCH", BOX, "sandbox", WRITE, body={"timeout": 1}),
    rest("DELETE", BOX, "sandbox", WRITE),
    rest("GET", f"{BOX}/status", "sandbox", READ, reads=True),
    rest("POST", f"{BOX}/execute", "sandbox", EXECUTE, body={"content": "kept = 'stolen'"}),
    rest("GET", f"{BOX}/executions", "sandbox", READ, reads=True),
    rest("GET", RUN, "sandbox", READ, reads=True),
    rest("GET", f"{RUN}/events", "sandbox", READ, reads=True),
    rest("POST", f"{RUN}/interrupt", "sandbox", EXECUTE),
    rest("GET", CONTEXT, "sandbox", READ, reads=True),
    rest("POST", CONTEXT, "sandbox", EXECUTE, body={"name": "more"}),
    rest("DELETE", f"{CONTEXT}/{{context_id}}", "sandbox", EXECUTE),
    rest("POST", f"{CONTEXT}/{{context_id}}/restart", "sandbox", EXECUTE),
    rest("POST", f"{BOX}/packages", "sandbox", EXECUTE, body={"packages": ["six"]}),
    rest("GET", f"{BOX}/commands", "sandbox", READ, reads=True),
    rest("POST", f"{BOX}/commands", "sandbox", EXECUTE, body={"command": "echo stolen > secret.txt"}),
    rest("GET", COMMAND, "sandbox", READ, reads=True),
    rest("DELETE", COMMAND, "sandbox", EXECUTE),
    rest("GET", f"{COMMAND}/events?after=1", "sandbox", READ),  # it lives: there is no end to wait for
    rest("POST", f"{COMMAND}/stdin", "sandbox", EXECUTE, body={"data": "stolen", "eof": True}),
    rest("POST", f"{COMMAND}/signal", "sandbox", EXECUTE, body={"signal": "SIGKILL"}),
    rest("GET", f"{BOX}/files", "sandbox", "files:read", reads=True),
    rest("GET", f"{BOX}/files/{{path}}", "sandbox", "files:read", reads=True),
    rest("PUT", f"{BOX}/files/{{path}}", "sandbox", "files:write", content=b"stolen"),
    rest("DELETE", f"{BOX}/files/{{path}}", "sandbox", "files:write"),
    rest("POST", f"{BOX}/files/{{path}}/move", "sandbox", "files:write", body={"target": "stolen"}),
    rest("GET", "/runtimes", "caller", "any", reads=True),
    rest("GET", "/runtimes/{runtime_id}", "nobody", "any", reads=True),
    rest("GET", "/profiles", "nobody", "any", reads=True),
    rest("GET", "/profiles/{profile_id}", "nobody", "any", reads=True),
    rest("GET", "/warmpools", "caller", "warmpools:read", reads=True),
    rest("POST", "/warmpools", "caller", "warmpools:write",
         body={"name": "security-refused", "runtime": "python", "minSize": 0}),
    rest("GET", "/warmpools/{name}", "thing", "warmpools:read", reads=True),
    rest("PATCH", "/warmpools/{name}", "thing", "warmpools:write", body={"ttl": 5}),
    rest("DELETE", "/warmpools/{name}", "thing", "warmpools:write"),
    rest("GET", "/warmpools/{name}/status", "thing", "warmpools:read", reads=True),
    rest("GET", "/user", "caller", "any", reads=True),
    rest("GET", "/user/apikeys", "caller", "any", reads=True),
    rest("POST", "/user/apikeys", "caller", "keys:write", body={"name": "refused"}),
    rest("DELETE", "/user/apikeys/{key_id}", "thing", "keys:write"),
    rest("GET", "/users", "caller", ADMIN),
    rest("POST", "/users", "caller", ADMIN, body={"name": "security-refused"}),
    rest("PATCH", "/users/{user_id}", "thing", ADMIN, body={"role": "viewer"}),
    rest("GET", "/users/{user_id}/apikeys", "thing", ADMIN),
    rest("POST", "/users/{user_id}/apikeys", "thing", ADMIN, body={"name": "refused"}),
    rest("GET", "/grants", "caller", READ, reads=True),
    rest("POST", "/grants", "sandbox", WRITE, body={"sandboxId": "{sandbox_id}", "userId": "{user_id}"}),
    rest("DELETE", "/grants/{grant_id}", "thing", WRITE),
    rest("GET", "/audit", "caller", ADMIN),
    rest("GET", "/system", "caller", ADMIN),
]  # fmt: skip
PUBLIC = {("GET", "/openapi.json"), ("GET", "/docs")}

KERNEL, SESSION = "/api/kernels/{kernel_id}", "/api/sessions/{session_id}"
JUPYTER = [
    Case("GET", "/api/me", "caller", "any", reads=True),
    Case("GET", "/api/status", "caller", READ, reads=True),
    Case("GET", "/api/kernelspecs", "nobody", READ, reads=True),
    Case("GET", "/api/kernelspecs/python3", "nobody", READ, reads=True),
    Case("GET", "/kernelspecs/python3/{logo}", "nobody", READ, reads=True),
    Case("HEAD", "/kernelspecs/python3/{logo}", "nobody", READ, reads=True),
    Case("GET", "/api/kernels", "caller", READ, reads=True),
    Case("POST", "/api/kernels", "caller", WRITE, body={"name": "python3"}),
    Case("GET", KERNEL, "sandbox", READ, reads=True),
    Case("DELETE", KERNEL, "sandbox", WRITE),
    Case("POST", f"{KERNEL}/interrupt", "sandbox", EXECUTE),
    Case("POST", f"{KERNEL}/restart", "sandbox", EXECUTE),
    Case("GET", "/api/sessions", "caller", READ, reads=True),
    Case("POST", "/api/sessions", "caller", WRITE, body={"path": "refused.ipynb", "type": "notebook"}),
    Case("GET", SESSION, "sandbox", READ, reads=True),
    Case("PATCH", SESSION, "sandbox", EXECUTE, body={"name": "stolen"}),
    Case("DELETE", SESSION, "sandbox", WRITE),
]
JUPYTER_PUBLIC = {("GET", r"/api/?")}
SOCKETS = {
    "/api/kernels/{kernel_id}/channels": "the channels",
    "/api/v1/sandboxes/{sandbox_id}/stream": "the stream",
}

CASES = [*REST, *JUPYTER]
OTHERS = {"runtime_id": "bash", "profile_id": "standard", "logo": "logo-svg.svg"}
NEVER_MADE = {
    "sandbox_id": f"sb-{uuid.uuid4().hex}",
    "kernel_id": str(uuid.uuid4()),
    "session_id": str(uuid.uuid4()),
    "key_id": uuid.uuid4().hex[:16],
    "user_id": f"us-{uuid.uuid4().hex[:16]}",
    "grant_id": f"gr-{uuid.uuid4().hex[:16]}",
    "name": "never-made",
}


def named(case: Case) -> str:
    return f"{case.method} {case.path}"


def about(*kinds: About) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [c for c in CASES if c.about in kinds], ids=named)


every_route = pytest.mark.parametrize("case", CASES, ids=named)


def values(world: World) -> dict[str, str]:
    return OTHERS | world.tenant.values


# -- the cases are whole -----------------------------------------------------------------------------------


def test_every_rest_route_has_a_case() -> None:
    listed = {(route.method, route.path) for route in API}
    cases = {(case.method, case.path.removeprefix("/api/v1").partition("?")[0]) for case in REST}
    assert listed == cases | PUBLIC
    assert {(route.method, route.path) for route in API if route.public} == PUBLIC


def test_every_case_names_the_scope_of_its_route() -> None:
    declared = {(route.method, route.path): route.scope or "any" for route in API}
    for case in REST:
        assert declared[case.method, case.path.removeprefix("/api/v1").partition("?")[0]] == case.scope, case


def test_every_jupyter_route_has_a_case() -> None:
    never = RequestHandler._unimplemented_method
    served = [
        (method.upper(), pattern)
        for pattern, handler in jupyter.routes()
        for method in ("get", "head", "post", "put", "patch", "delete")
        if getattr(handler, method) is not never
    ]
    example = {name: str(uuid.uuid4()) for name in ("kernel_id", "session_id", "logo")}
    calls = {(case.method, case.url(example)) for case in JUPYTER}
    calls |= {("GET", path.format(**example, sandbox_id="x")) for path in SOCKETS}
    for method, pattern in served:
        if (method, pattern) not in JUPYTER_PUBLIC:
            assert any(m == method and re.fullmatch(pattern, path) for m, path in calls), (method, pattern)


# -- without a valid key -----------------------------------------------------------------------------------


@every_route
def test_without_a_valid_key_nothing_is_served(case: Case, world: World, strangers: Strangers) -> None:
    for why, key in world.bad_keys.items():
        answer = strangers.request(case.method, case.url(values(world)), key, json=case.body)
        in_shape(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer"), why
        assert SECRET not in answer.text, why


@every_route
def test_a_key_in_the_query_of_a_plain_request_is_none(
    case: Case, world: World, strangers: Strangers
) -> None:
    url = case.url(values(world))
    url += ("&" if "?" in url else "?") + f"token={world.tenant.owner.key}"
    in_shape(strangers.request(case.method, url, None, json=case.body), 401, "unauthorized")


def test_unknown_paths_and_methods_tell_nothing(world: World, strangers: Strangers) -> None:
    for path in ("/api/v1/nothing", "/api/v1", "/api/v1/sandboxes/x/y/z"):
        answer = strangers.request("GET", path, None)
        assert answer.status_code in (401, 404)
        in_shape(answer)


# -- other people ------------------------------------------------------------------------------------------


@about("sandbox", "thing")
def test_another_tenant_cannot_tell_whether_it_exists(case: Case, world: World) -> None:
    """Its developer and its admin get 404, the same as for what never was; never 403, never any data."""
    for person in (world.foreigner, world.foreign_admin):
        if (
            case.scope != "any"
            and case.scope not in ROLES["admin" if person is world.foreign_admin else "developer"]
        ):
            continue
        answer = case.ask(person.client, values(world))
        in_shape(answer, 404, "not_found")
        assert SECRET not in answer.text
        nothing = case.ask(person.client, values(world) | NEVER_MADE)
        in_shape(nothing, 404, "not_found")
        assert blurred(answer.text, values(world)) == blurred(nothing.text, NEVER_MADE)


@about("sandbox")
def test_a_colleague_without_a_grant_cannot_tell_either(case: Case, world: World) -> None:
    answer = case.ask(world.colleague.client, values(world))
    in_shape(answer, 404, "not_found")
    nothing = case.ask(world.colleague.client, values(world) | NEVER_MADE)
    assert blurred(answer.text, values(world)) == blurred(nothing.text, NEVER_MADE)


@about("sandbox")
def test_a_viewer_without_a_grant_cannot_tell_either(case: Case, world: World) -> None:
    """404 where a viewer may ask at all; where it may not, 403 whether there is such a thing or not."""
    answer = case.ask(world.bystander.client, values(world))
    nothing = case.ask(world.bystander.client, values(world) | NEVER_MADE)
    in_shape(answer, 404 if case.scope in ROLES["viewer"] else nothing.status_code)
    assert answer.status_code in (403, 404)
    assert blurred(answer.text, values(world)) == blurred(nothing.text, NEVER_MADE)
    assert SECRET not in answer.text


def blurred(text: str, ids: dict[str, str]) -> str:
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    return text


@about("sandbox")
def test_a_viewer_with_a_grant_reads_and_changes_nothing(case: Case, world: World) -> None:
    for person in (world.guest, world.helper):
        if case.path.endswith("after=1"):
            with person.client.stream("GET", case.url(values(world))) as answer:
                assert answer.status_code == 200
        elif case.reads:
            assert case.ask(person.client, values(world)).status_code == 200
        else:
            in_shape(case.ask(person.client, values(world)), 403, "forbidden")


@about("thing", "caller", "nobody")
def test_what_a_viewers_role_does_not_hold_is_forbidden(case: Case, world: World) -> None:
    answer = case.ask(world.guest.client, values(world))
    if case.reads:
        assert answer.status_code == 200, answer.text
    else:
        in_shape(answer, 403, "forbidden")


@pytest.mark.parametrize("case", [c for c in CASES if c.scope == ADMIN], ids=named)
def test_what_is_for_admins_is_forbidden_to_developers(case: Case, world: World) -> None:
    for person in (world.tenant.owner, world.colleague, world.foreigner):
        in_shape(case.ask(person.client, values(world)), 403, "forbidden")


@pytest.mark.parametrize("case", [c for c in CASES if c.scope not in ("any", ADMIN)], ids=named)
def test_a_key_without_the_scope_is_forbidden_on_ones_own(case: Case, world: World, keys_less: Any) -> None:
    in_shape(case.ask(keys_less(case.scope), values(world)), 403, "forbidden")


@pytest.fixture(scope="module")
def keys_less(world: World) -> Any:
    """`keys_less(scope)`: the owner's client with every scope of a developer but that one."""
    made: dict[str, Client] = {}

    def less(scope: str) -> Client:
        if scope not in made:
            scopes = sorted(ROLES["developer"] - {scope})
            key = world.operator.key(world.tenant.owner.id, scopes=scopes)
            made[scope] = world.operator.client(key["key"])
        return made[scope]

    return less


# -- lists -------------------------------------------------------------------------------------------------

LISTS = [
    "/api/v1/sandboxes",
    "/api/v1/warmpools",
    "/api/v1/user/apikeys",
    "/api/v1/users",
    "/api/v1/grants",
    "/api/v1/audit",
    "/api/kernels",
    "/api/sessions",
    "/api/status",
]


@pytest.mark.parametrize("path", LISTS)
def test_lists_of_another_tenant_hold_nothing_of_this_one(path: str, world: World) -> None:
    for person in (world.foreigner, world.foreign_admin):
        answer = person.client.get(path)
        if answer.status_code == 403:
            assert person is world.foreigner
            continue
        assert answer.status_code == 200, answer.text
        for name, value in world.tenant.values.items():
            if name != "path":
                assert value not in answer.text, (path, name)
        assert SECRET not in answer.text
        assert world.tenant.owner.name not in answer.text


@pytest.mark.parametrize("path", ["/api/v1/sandboxes", "/api/v1/grants", "/api/kernels", "/api/sessions"])
def test_lists_of_a_colleague_hold_nothing_of_the_owners(path: str, world: World) -> None:
    for person in (world.colleague, world.bystander):
        answer = person.client.get(path)
        assert answer.status_code == 200
        for name in ("sandbox_id", "kernel_id", "session_id", "grant_id"):
            assert world.tenant.values[name] not in answer.text
        assert SECRET not in answer.text


def test_a_client_made_kernel_id_of_somebody_else_gives_nothing_of_it(world: World) -> None:
    """Kernel ids are idempotency keys of their own user: the id of another's kernel is no way in."""
    with_id = {"kernel_id": world.tenant.kernel, "name": "python3"}
    for person in (world.foreigner, world.colleague):
        answer = person.client.post("/api/kernels", json=with_id)
        if answer.is_success:
            person.client.delete(f"/api/kernels/{answer.json()['id']}")
            assert answer.json()["id"] != world.tenant.kernel
        else:
            in_shape(answer)
            assert answer.status_code in (404, 409)
        session = {"path": "x.ipynb", "type": "notebook", "kernel": {"id": world.tenant.kernel}}
        in_shape(person.client.post("/api/sessions", json=session), 404, "not_found")


def test_a_grant_does_not_cross_tenants(world: World) -> None:
    body = {"sandboxId": world.tenant.sandbox, "userId": world.foreigner.id}
    in_shape(world.tenant.owner.client.post("/api/v1/grants", json=body), 404, "not_found")


def test_a_key_cannot_make_a_stronger_one(world: World) -> None:
    weak = world.operator.key(world.tenant.owner.id, scopes=["keys:write", READ])
    client = world.operator.client(weak["key"])
    in_shape(client.post("/api/v1/user/apikeys", json={"scopes": [EXECUTE]}), 400, "invalid_request")
    made = client.made("POST", "/api/v1/user/apikeys", {})
    assert sorted(made["scopes"]) == ["keys:write", READ]
    in_shape(client.post("/api/v1/user/apikeys", json={"scopes": [ADMIN]}), 400, "invalid_request")


def test_an_admin_of_one_tenant_makes_no_users_in_another(world: World) -> None:
    body = {"name": "intruder", "role": "admin", "tenant": world.tenant.name}
    in_shape(world.foreign_admin.client.post("/api/v1/users", json=body), 403, "forbidden")


# -- and nothing happened ----------------------------------------------------------------------------------


def belongings(tenant: Tenant) -> dict[str, Any]:
    """Everything that the owner has, as it sees it: what nobody else may have changed."""
    mine, box = tenant.owner.client, f"/api/v1/sandboxes/{tenant.sandbox}"
    sandbox, session = mine.made("GET", box), mine.made("GET", f"/api/sessions/{tenant.values['session_id']}")
    pool = mine.made("GET", f"/api/v1/warmpools/{tenant.values['name']}")
    commands = mine.made("GET", f"{box}/commands")["items"]
    return {
        "sandbox": [sandbox["status"], sandbox["timeout"], sandbox["metadata"]],
        "variable": mine.output(tenant.sandbox, "print(kept, end='')"),
        "file": mine.get(f"{box}/files/secret.txt").text,
        "files": [row["path"] for row in mine.made("GET", f"{box}/files")["items"]],
        "commands": {row["id"]: row["running"] for row in commands},
        "contexts": sorted(row["id"] for row in mine.made("GET", f"{box}/contexts")["items"]),
        "pool": [pool["ttl"], pool["minSize"]],
        "session": session["name"],
        "user": mine.made("GET", "/api/v1/user")["role"],
        "grants": sorted(row["id"] for row in mine.made("GET", "/api/v1/grants")["items"]),
        "kernel": [row["id"] for row in mine.get("/api/kernels").json() if row["id"] == tenant.kernel],
    }


@pytest.fixture(scope="module", autouse=True)
def before(world: World) -> dict[str, Any]:
    """What the owner had before this module's first request; other modules may have left more or less."""
    had = belongings(world.tenant)
    assert (had["variable"], had["file"], had["session"]) == (SECRET, SECRET, SECRET)
    assert had["commands"][world.tenant.values["command_id"]]
    return had


def test_after_all_the_refusals_everything_is_as_it_was(before: dict[str, Any], world: World) -> None:
    assert belongings(world.tenant) == before
