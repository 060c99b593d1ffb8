"""Bad input to every route: a 4xx in the API's own shape, soon; never a 5xx, and nothing broken by it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from llmsafespace_gateway.rest import API
from llmsafespace_gateway.rest.routing import Route
from tests.security.support import LIMIT, Client, Operator, Person, Tenant, in_shape, populate


@pytest.fixture(scope="module")
def tenant(operator: Operator) -> Iterator[Tenant]:
    """Somebody with one of everything, all of whose requests are wrong."""
    yield from populate(operator, "bad-input", operator.person("bad-input", "viewer"))


@pytest.fixture(scope="module")
def admin(tenant: Tenant, operator: Operator) -> Person:
    """An admin of the same tenant: nothing is refused for a lack of rights."""
    return operator.person("bad-input", "admin")


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def url(route: Route, values: dict[str, str]) -> str:
    return f"/api/v1{route.path}".format(**values)


PRIVATE = [route for route in API if not route.public]
TAKING_JSON = [route for route in PRIVATE if route.request is not None]
WITH_QUERY = [(route, query) for route in PRIVATE for query in route.query]
IDS = {"runtime_id": "bash", "profile_id": "standard"}

NO_JSON = [
    b"{",
    b"nonsense",
    b"\xff\xfe\x00",
    b'{"a": NaN}',
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b'{"a": "\xed\xa0\x80"}',
    b"{} {}",
    b"'{}'",
    b"\x00",
]
NO_OBJECT = [b"null", b"true", b"1", b"1e400", b'"text"', b"[]", b"[{}]", b"9" * 5000]
STRANGE = [None, True, -1, 0, 1e308, 10**30, "", "\0", "x" * 200_000, "\ud7ff\u202e", [], [None], {}, {"a": None}]


def fields(route: Route) -> list[str]:
    return [field.encode_name for field in __import__("msgspec").structs.fields(route.request)]


def refused(client: Client, method: str, path: str, **more: Any) -> None:
    """The request gets a 4xx of the right shape."""
    answer = client.request(method, path, **more)
    said = f"{method} {path} {str(more)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert 400 <= answer.status_code < 500, said
    in_shape(answer)


def no_fault(client: Client, method: str, path: str, **more: Any) -> int:
    """The request gets an answer that is no fault of the gateway's; its status."""
    answer = client.request(method, path, **more)
    said = f"{method} {path} {str(more)[:200]}: {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, said
    if answer.status_code >= 400:
        in_shape(answer)
    return answer.status_code


# -- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_what_is_no_json_object_is_refused(route: Route, tenant: Tenant, admin: Person) -> None:
    for body in NO_JSON + NO_OBJECT:
        headers = {"Content-Type": "application/json"}
        refused(admin.client, route.method, url(route, tenant.values), content=body, headers=headers)


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_what_says_it_is_something_else_is_refused(route: Route, tenant: Tenant, admin: Person) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "/"):
        headers = {"Content-Type": kind}
        answer = admin.client.request(
            route.method, url(route, tenant.values), content=b"{}", headers=headers
        )
        in_shape(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_unknown_fields_are_named(route: Route, tenant: Tenant, admin: Person) -> None:
    for name in ("surprise", "__proto__", "", "a.b", "$", "`", "x" * 5000, "\n"):
        refused(admin.client, route.method, url(route, tenant.values), json={name: 1})


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_strange_values_are_no_fault(route: Route, tenant: Tenant, admin: Person) -> None:
    """Each field with each strange value, in ids that do not exist: the body is judged, nothing is made."""
    values = IDS | {name: "never-made" for name in tenant.values}
    for name in fields(route):
        for value in STRANGE:
            body = json.dumps({name: value}).encode()
            headers = {"Content-Type": "application/json"}
            made = admin.client.request(route.method, url(route, values), content=body, headers=headers)
            said = f"{named(route)} {name}={str(value)[:60]}: {made.status_code} {made.text[:300]}"
            assert made.status_code < 500, said
            if made.status_code >= 400:
                in_shape(made)
            else:  # what was sent was good after all: a name is nearly free, a key needs no fields
                assert route.path.endswith(("/apikeys", "/users")), said


@pytest.mark.parametrize("route", [r for r in PRIVATE if r.request is None and not r.upload], ids=named)
def test_a_body_where_none_is_taken(route: Route, tenant: Tenant, admin: Person) -> None:
    values = IDS | {name: "never-made" for name in tenant.values}
    refused(admin.client, route.method, url(route, values), content=b"{}")


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_a_body_that_is_too_long_is_refused(route: Route, tenant: Tenant, admin: Person) -> None:
    if route.max_body > 2**21:
        pytest.skip("as long as this one may be, others are tested with")
    answer = admin.client.request(
        route.method,
        url(route, tenant.values),
        content=b'{"a":"' + b"x" * (route.max_body + 1) + b'"}',
        headers={"Content-Type": "application/json"},
    )
    in_shape(answer, 413, "payload_too_large")


# -- paths and queries -------------------------------------------------------------------------------------

WRONG_IDS = [
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..",
    "%00",
    "x%00y",
    "%ff%fe",
    "%",
    "%zz",
    "x" * 3000,
    "'%20or%201=1--",
    "%22",
    "$(id)",
    "{sandbox_id}",
    "*",
    "null",
    "0",
    "-1",
    "%F0%9F%92%A9",
    "%0d%0aX-Injected:%20yes",
    "sb-%E2%80%AE",
]


@pytest.mark.parametrize("route", [r for r in PRIVATE if r.parameters], ids=named)
def test_wrong_ids_are_not_found(route: Route, tenant: Tenant, admin: Person) -> None:
    """Each id of the path in turn, the others being good."""
    for name in route.parameters:
        if name == "path":
            continue
        for wrong in WRONG_IDS:
            path = url(route, IDS | tenant.values | {name: wrong})
            answer = admin.client.request(route.method, path, json={} if route.request else None)
            assert 400 <= answer.status_code < 500, f"{route.method} {path}: {answer.status_code} {answer.text}"
            in_shape(answer)
            assert "X-Injected" not in answer.headers


WRONG_FILES = [
    "%2e%2e/%2e%2e/etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "workspace/%2e%2e/%2e%2e/etc/shadow",
    "a/%2e%2e/%2e%2e/%2e%2e/proc/1/environ",
    "%00",
    "a%00b",
    "%ff",
    "x/" * 3000,
    "x" * 300,
    "secret.txt/x",
    "%2e",
]


def test_dots_in_a_path_are_never_followed(gateway: Any, tenant: Tenant) -> None:
    """Clients tidy such paths up; attackers do not."""
    mine = f"/api/v1/sandboxes/{tenant.sandbox}"
    for path in ("/..", "/files/../../..", "/files/../../../user", "/../../user", "/executions/..", "/./status"):
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT)
        connection.request("GET", mine + path, headers={"Authorization": f"Bearer {tenant.owner.key}"})
        answer = connection.getresponse()
        assert answer.status in (400, 404), (path, answer.status)
        assert set(json.loads(answer.read())) == {"error"}, path
        connection.close()


def test_paths_that_lead_out_of_the_workspace_lead_nowhere(tenant: Tenant) -> None:
    client, base = tenant.owner.client, f"/api/v1/sandboxes/{tenant.sandbox}/files"
    for wrong in WRONG_FILES:
        for method, path, more in (
            ("GET", f"{base}/{wrong}", {}),
            ("HEAD", f"{base}/{wrong}", {}),
            ("GET", f"{base}/{wrong}?stat=true", {}),
            ("PUT", f"{base}/{wrong}", {"content": b"x"}),
            ("PUT", f"{base}/{wrong}?directory=true", {}),
            ("DELETE", f"{base}/{wrong}?recursive=true", {}),
            ("POST", f"{base}/{wrong}/move", {"json": {"target": "b"}}),
            ("GET", f"{base}?path={wrong}", {}),
        ):
            status = no_fault(client, method, path, **more)
            if any(part in wrong for part in ("etc", "proc", "..", "%2e%2e", "%00")):
                assert 400 <= status < 500, (method, path, status)
    for target in ("../x", "/etc/x", "/workspace/../x", "", "\0", "x" * 5000, "/proc/1/mem"):
        refused(client, "POST", f"{base}/secret.txt/move", json={"target": target})
    assert client.get(f"{base}/secret.txt").status_code == 200


@pytest.mark.parametrize("route", PRIVATE, ids=named)
def test_unknown_and_repeated_query_values_are_refused(route: Route, tenant: Tenant, admin: Person) -> None:
    values = IDS | {name: "never-made" for name in tenant.values}
    for query in ("surprise=1", "Limit=1", "%00=1", "limit=1&limit=2" if route.query else "limit=1", "%ff=%ff"):
        body = {"json": {}} if route.request is not None else {}
        refused(admin.client, route.method, f"{url(route, values)}?{query}", **body)


@pytest.mark.parametrize(("route", "query"), WITH_QUERY, ids=lambda v: getattr(v, "path", None) or v.name)
def test_wrong_query_values_are_refused(route: Route, query: Any, tenant: Tenant, admin: Person) -> None:
    wrong = {
        "integer": ["", "x", "1.5", "-99999999999999999999", "1e3", "٣", "%00", "9" * 400, "0x10", " 1", "NaN"],
        "boolean": ["", "yes", "2", "null", "%00", "truetrue"],
        "string": ["%00", "x" * 5000] + (["", "nonsense", "RUNNING"] if query.choices else []),
    }
    path = url(route, IDS | tenant.values)
    for value in wrong[query.of]:
        refused(admin.client, route.method, f"{path}?{query.name}={value}")


def test_wrong_headers_are_no_fault(tenant: Tenant) -> None:
    client, base = tenant.owner.client, f"/api/v1/sandboxes/{tenant.sandbox}"
    for name, values in {
        "Range": ["bytes=", "bytes=5-1", "bytes=-", "bytes=99999999999999999999-", "x=1-2", "bytes=0-0,2-3", "\xff"],
        "If-Match": ["", '"', '"a", "b"', "x" * 9000, "W/"],
        "If-None-Match": ["", '"', "x" * 9000],
        "Accept": ["", "x" * 9000, "text/event-stream;q=x"],
        "Last-Event-ID": ["x", "-1", "9" * 400, "\xff"],
        "X-Request-Id": ["x" * 9000, "\xff", "a\tb"],
        "Accept-Encoding": ["gzip, br, x"],
        "Content-Encoding": ["gzip", "x"],
    }.items():
        for value in values:
            headers = {name: value.encode("latin-1")}
            no_fault(client, "GET", f"{base}/files/secret.txt", headers=headers)
            no_fault(client, "GET", f"{base}/executions/never-made/events", headers=headers)
            no_fault(client, "POST", f"{base}/execute", headers=headers, json={"content": 1})
    for key in ("", "a b", "x" * 201, "\xff"):
        headers = {"Idempotency-Key": key.encode("latin-1")}
        refused(client, "POST", "/api/v1/sandboxes", json={"runtime": "bash"}, headers=headers)


def test_wrong_methods_are_refused(tenant: Tenant, admin: Person) -> None:
    for route in PRIVATE:
        path = url(route, IDS | tenant.values)
        allowed = {r.method for r in API if url(r, IDS | tenant.values) == path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
            if route.path.endswith("{path}/move") or "/files/" in route.path:
                continue  # any path below files names a file
            answer = admin.client.request(method, path)
            in_shape(answer, 405, "method_not_allowed")
            assert answer.headers["allow"]
    for method in ("OPTIONS", "TRACE", "PROPFIND", "X"):
        no_5xx_of_tornado = admin.client.request(method, "/api/v1/sandboxes")
        assert 400 <= no_5xx_of_tornado.status_code < 500


def test_unknown_paths_are_not_found(admin: Person) -> None:
    for path in ("/api/v1/", "/api/v1/sandbox", "/api/v1//sandboxes", "/api/v1/sandboxes/", "/api/v1/%2e%2e/kernels"):
        in_shape(admin.client.get(path), 404, "not_found")
    for path in ("/api/contents", "/api/kernels/x", "/api/terminals", "/api/kernels/", "/", "/nothing", "/static/x"):
        assert admin.client.get(path).status_code == 404


# -- the Jupyter API ---------------------------------------------------------------------------------------

# Jupyter servers look at the fields that they know, and at no others.
FOR_JUPYTER = [body for body in NO_JSON + NO_OBJECT if b"\xed" not in body]
WRONG_KERNELS = [
    *({"name": name} for name in ("", "cobol", "../python3", "x" * 5000, "\0", 1, None, [], {})),
    *({"env": env} for env in ([], "x", 1, {"A": {}}, {"A=B": "x"}, {"": "x"}, {"A": "\0"}, {"A": "x" * 200_000})),
    *({"path": path} for path in (1, [], "\0", "x" * 5000)),
    *({"kernel_id": kernel} for kernel in ("", "x", 1, [], "../..", str(uuid.uuid4()) + "\n")),
]
WRONG_SESSIONS = [
    {},
    {"path": "a"},
    {"type": "notebook"},
    *({"path": path, "type": "notebook"} for path in (1, None, "\0", "x" * 5000, [])),
    *({"path": "a", "type": kind} for kind in (1, None, "\0", [])),
    *({"path": "a", "type": "notebook", "kernel": k} for k in (1, [], {"id": "x"}, {"id": 1}, {"name": "cobol"})),
    {"path": "a", "type": "notebook", "kernel": {"id": str(uuid.uuid4())}},
    {"path": "a", "type": "notebook", "name": 1},
]


def test_bad_kernel_wishes(tenant: Tenant) -> None:
    client = tenant.owner.client
    for body in FOR_JUPYTER:
        refused(client, "POST", "/api/kernels", content=body)
    for wish in WRONG_KERNELS:
        answer = client.post("/api/kernels", json=wish)
        if answer.is_success:  # None and the empty name mean the default kernel
            client.delete(f"/api/kernels/{answer.json()['id']}")
            assert wish in ({"name": ""}, {"name": None}), wish
        else:
            assert 400 <= answer.status_code < 500, (wish, answer.text)
            in_shape(answer)
    refused(client, "POST", "/api/kernels", content=b'{"path": "' + b"x" * 2**21 + b'"}')


def test_bad_session_wishes(tenant: Tenant) -> None:
    client = tenant.owner.client
    mine = f"/api/sessions/{tenant.values['session_id']}"
    for body in FOR_JUPYTER:
        refused(client, "POST", "/api/sessions", content=body)
        refused(client, "PATCH", mine, content=body)
    for wish in WRONG_SESSIONS:
        refused(client, "POST", "/api/sessions", json=wish)
    for wish in ({"kernel": {"id": "x"}}, {"kernel": {"name": "cobol"}}, {"name": 1}, {"path": "\0"}):
        refused(client, "PATCH", mine, json=wish)
    assert client.made("GET", mine)["kernel"]["id"] == tenant.kernel


def test_wrong_jupyter_ids_and_queries(tenant: Tenant) -> None:
    client = tenant.owner.client
    never = str(uuid.uuid4())
    for wrong in (*WRONG_IDS, never, never.upper(), "a-a-a-a-a"):
        for method, path in (
            *((method, f"/api/kernels/{wrong}") for method in ("GET", "DELETE")),
            *((method, f"/api/sessions/{wrong}") for method in ("GET", "PATCH", "DELETE")),
            *(("POST", f"/api/kernels/{wrong}/{action}") for action in ("interrupt", "restart", "nothing")),
            *(("GET", path) for path in (f"/api/kernelspecs/{wrong}", f"/kernelspecs/python3/{wrong}")),
        ):
            answer = client.request(method, path, json={"name": "x"} if method == "PATCH" else None)
            assert 400 <= answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
    for query in ("session_id=" + "x" * 300, "after=x", "after=-1", "after=" + "9" * 40):
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        refused(client, "GET", f"/api/kernels/{tenant.kernel}/channels?{query}", headers=headers)
    for asked in ("x", "[]", "1", '{"a": 1}', "%ff"):
        refused(client, "GET", f"/api/me?permissions={asked}")


# -- below HTTP --------------------------------------------------------------------------------------------

RAW = [
    b"nonsense\r\n\r\n",
    b"GET /api/v1/sandboxes HTTP/9.9\r\n\r\n",
    b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/v1/user HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:40]))
def test_what_is_no_http_gets_no_5xx_and_no_hang(raw: bytes, gateway: Any) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=LIMIT) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while piece := connection.recv(65536):
                said += piece
        except ConnectionResetError:
            pass
    assert re.match(rb"HTTP/1\.[01] 5", said) is None
    if b"169.254" in raw:
        assert b"ami-id" not in said


# -- nothing broken ----------------------------------------------------------------------------------------


def test_afterwards_everything_works_and_the_log_has_no_fault(gateway: Any, tenant: Tenant) -> None:
    client = tenant.owner.client
    assert client.output(tenant.sandbox, "print(1)") == "1\n"
    assert client.made("GET", f"/api/v1/warmpools/{tenant.values['name']}")["name"]
    faults = [line for line in gateway.output if '"level": "error"' in line or "Traceback" in line]
    assert faults == [], faults[:3]
