"""Bad input to every REST route: a 4xx in its own shape, soon; never a 5xx, and nothing broken by it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway.rest import API
from llmsafespace_gateway.rest.routing import Route
from tests.security.nonsense import NO_JSON, NO_OBJECT, STRANGE, WRONG_IDS, no_fault, refused
from tests.security.support import LIMIT, Person, Tenant, in_shape


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def url(route: Route, values: dict[str, str]) -> str:
    return f"/api/v1{route.path}".format(**values)


PRIVATE = [route for route in API if not route.public]
TAKING_JSON = [route for route in PRIVATE if route.request is not None]
WITH_QUERY = [(route, query) for route in PRIVATE for query in route.query]
IDS = {"runtime_id": "bash", "profile_id": "standard"}


def fields(route: Route) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(route.request)]


# -- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_what_is_no_json_object_is_refused(route: Route, harassed: Tenant, meddler: Person) -> None:
    for body in NO_JSON + NO_OBJECT:
        headers = {"Content-Type": "application/json"}
        refused(meddler.client, route.method, url(route, harassed.values), content=body, headers=headers)


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_what_says_it_is_something_else_is_refused(route: Route, harassed: Tenant, meddler: Person) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "json",
        "/",
    ):
        headers = {"Content-Type": kind}
        answer = meddler.client.request(
            route.method, url(route, harassed.values), content=b"{}", headers=headers
        )
        in_shape(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_unknown_fields_are_named(route: Route, harassed: Tenant, meddler: Person) -> None:
    for name in ("surprise", "__proto__", "", "a.b", "$", "`", "x" * 5000, "\n"):
        refused(meddler.client, route.method, url(route, harassed.values), json={name: 1})


@pytest.mark.parametrize("route", TAKING_JSON, ids=named)
def test_strange_values_are_no_fault(route: Route, harassed: Tenant, meddler: Person) -> None:
    """Each field with each strange value, in ids that do not exist: the body is judged."""
    values = IDS | dict.fromkeys(harassed.values, "never-made")
    for name in fields(route):
        for value in STRANGE:
            body = json.dumps({name: value}).encode()
            headers = {"Content-Type": "application/json"}
            made = meddler.client.request(route.method, url(route, values), content=body, headers=headers)
            said = f"{named(route)} {name}={str(value)[:60]}: {made.status_code} {made.text[:300]}"
            assert made.status_code < 500, said
            if made.status_code >= 400:
                in_shape(made)
            elif route.path == "/sandboxes":  # no field is needed, and `null` is a default
                assert meddler.client.delete(f"/api/v1/sandboxes/{made.json()['id']}").status_code < 300
            else:  # what was sent was good after all: a name is nearly free, a key needs no fields
                assert route.path.endswith(("/apikeys", "/users")), said


@pytest.mark.parametrize("route", [r for r in PRIVATE if r.request is None and not r.upload], ids=named)
def test_a_body_where_none_is_taken(route: Route, harassed: Tenant, meddler: Person) -> None:
    values = IDS | dict.fromkeys(harassed.values, "never-made")
    refused(meddler.client, route.method, url(route, values), content=b"{}")


@pytest.mark.parametrize("route", [r for r in TAKING_JSON if r.max_body <= 2**21], ids=named)
def test_a_body_that_is_too_long_is_refused(route: Route, harassed: Tenant, meddler: Person) -> None:
    answer = meddler.client.request(
        route.method,
        url(route, harassed.values),
        content=b'{"a":"' + b"x" * (route.max_body + 1) + b'"}',
        headers={"Content-Type": "application/json"},
    )
    in_shape(answer, 413, "payload_too_large")


# -- paths and queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [r for r in PRIVATE if r.parameters], ids=named)
def test_wrong_ids_are_not_found(route: Route, harassed: Tenant, meddler: Person) -> None:
    """Each id of the path in turn, the others being good."""
    for name in route.parameters:
        if name == "path":
            continue
        for wrong in WRONG_IDS:
            path = url(route, IDS | harassed.values | {name: wrong})
            answer = meddler.client.request(route.method, path, json={} if route.request else None)
            assert 400 <= answer.status_code < 500, (
                f"{route.method} {path}: {answer.status_code} {answer.text}"
            )
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


def test_dots_in_a_path_are_never_followed(gateway: Any, harassed: Tenant) -> None:
    """Clients tidy such paths up; attackers do not."""
    mine = f"/api/v1/sandboxes/{harassed.sandbox}"
    host, port = gateway.address
    for path in (
        "/..",
        "/files/../../..",
        "/files/../../../user",
        "/../../user",
        "/executions/..",
        "/./status",
    ):
        connection = http.client.HTTPConnection(host, port, timeout=LIMIT)
        connection.request("GET", mine + path, headers={"Authorization": f"Bearer {harassed.owner.key}"})
        answer = connection.getresponse()
        assert answer.status in (400, 404), (path, answer.status)
        assert set(json.loads(answer.read())) == {"error"}, path
        connection.close()


def test_paths_that_lead_out_of_the_workspace_lead_nowhere(harassed: Tenant) -> None:
    client, base = harassed.owner.client, f"/api/v1/sandboxes/{harassed.sandbox}/files"
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
def test_unknown_and_repeated_query_values_are_refused(
    route: Route, harassed: Tenant, meddler: Person
) -> None:
    values = IDS | dict.fromkeys(harassed.values, "never-made")
    for query in (
        "surprise=1",
        "Limit=1",
        "%00=1",
        "limit=1&limit=2" if route.query else "limit=1",
        "%ff=%ff",
    ):
        body: dict[str, Any] = {"json": {}} if route.request is not None else {}
        refused(meddler.client, route.method, f"{url(route, values)}?{query}", **body)


@pytest.mark.parametrize(("route", "query"), WITH_QUERY, ids=lambda v: getattr(v, "path", None) or v.name)
def test_wrong_query_values_are_refused(route: Route, query: Any, harassed: Tenant, meddler: Person) -> None:
    wrong = {
        "integer": [
            "",
            "x",
            "1.5",
            "-99999999999999999999",
            "1e3",
            "٣",
            "%00",
            "9" * 400,
            "0x10",
            " 1",
            "NaN",
        ],
        "boolean": ["", "yes", "2", "null", "%00", "truetrue"],
        "string": ["%00", "x" * 5000] + (["", "nonsense", "RUNNING"] if query.choices else []),
    }
    path = url(route, IDS | harassed.values)
    for value in wrong[query.of]:
        refused(meddler.client, route.method, f"{path}?{query.name}={value}")


def test_wrong_headers_are_no_fault(harassed: Tenant) -> None:
    client, base = harassed.owner.client, f"/api/v1/sandboxes/{harassed.sandbox}"
    for name, values in {
        "Range": [
            "bytes=",
            "bytes=5-1",
            "bytes=-",
            "bytes=99999999999999999999-",
            "x=1-2",
            "bytes=0-0,2-3",
            "\xff",
        ],
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


def test_wrong_methods_are_refused(harassed: Tenant, meddler: Person) -> None:
    for route in PRIVATE:
        path = url(route, IDS | harassed.values)
        allowed = {r.method for r in API if url(r, IDS | harassed.values) == path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - allowed:
            if route.path.endswith("{path}/move") or "/files/" in route.path:
                continue  # any path below files names a file
            answer = meddler.client.request(method, path)
            in_shape(answer, 405, "method_not_allowed")
            assert answer.headers["allow"]
    for method in ("OPTIONS", "TRACE", "PROPFIND", "X"):
        no_5xx_of_tornado = meddler.client.request(method, "/api/v1/sandboxes")
        assert 400 <= no_5xx_of_tornado.status_code < 500


def test_unknown_paths_are_not_found(meddler: Person) -> None:
    for path in (
        "/api/v1/",
        "/api/v1/sandbox",
        "/api/v1//sandboxes",
        "/api/v1/sandboxes/",
        "/api/v1/%2e%2e/kernels",
    ):
        in_shape(meddler.client.get(path), 404, "not_found")
    for path in (
        "/api/contents",
        "/api/kernels/x",
        "/api/terminals",
        "/api/kernels/",
        "/nothing",
        "/static/x",
    ):
        assert meddler.client.get(path).status_code == 404


# -- below HTTP --------------------------------------------------------------------------------------------

RAW = [
    b"nonsense\r\n\r\n",
    b"GET /api/v1/sandboxes HTTP/9.9\r\n\r\n",
    b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/v1/user HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /api/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5",
    b"POST /api/v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:40]))
def test_what_is_no_http_gets_no_5xx_and_no_hang(raw: bytes, gateway: Any) -> None:
    with socket.create_connection(gateway.address, timeout=LIMIT) as connection:
        said = b""
        with contextlib.suppress(OSError):  # it may have refused the rest already
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        try:
            while piece := connection.recv(65536):
                said += piece
        except ConnectionResetError:
            pass
    assert re.match(rb"HTTP/1\.[01] 5", said) is None
    if b"169.254" in raw:
        assert b"ami-id" not in said


# -- nothing broken ----------------------------------------------------------------------------------------


def test_afterwards_everything_works(harassed: Tenant) -> None:
    client = harassed.owner.client
    assert client.output(harassed.sandbox, "print(1)") == "1\n"
    assert client.made("GET", f"/api/v1/warmpools/{harassed.values['name']}")["name"]


def test_afterwards_the_log_has_no_fault(gateway: Any, harassed: Tenant) -> None:
    faults = [line for line in gateway.output if '"level": "error"' in line or "Traceback" in line]
    assert faults == [], faults[:3]
