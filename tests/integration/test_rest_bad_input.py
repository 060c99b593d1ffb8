"""Bad input to every route, driven by the route table: 4xx in the contract's shape, never a 5xx or a hang."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from llmsafespace_gateway.rest import API
from llmsafespace_gateway.rest.routing import Route
from tests.integration.rest_support import Client, is_error

PRIVATE = [route for route in API if not route.public]
# What is there as soon as its sandbox is.
NAMES_NO_MORE = (
    "{sandbox_id}",
    "/status",
    "/execute",
    "/packages",
    "/commands",
    "/contexts",
    "/files",
    "/executions",
)
BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"1",
    b'"text"',
    b"\xff\xfe\x00",
    b"[" * 60_000,
    b'{"unknown": 1}',
    b'{"a": ' * 5_000,
    b'{"content": "\\ud800", "runtime": "\\ud800", "name": "\\ud800"}',
]


@pytest.fixture(scope="module")
def client(gateway: Any) -> Iterator[Client]:
    with Client(gateway.url, gateway.admin_key) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(client: Client) -> Iterator[str]:
    with client.sandbox() as made:
        yield made


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def address(route: Route, **values: str) -> str:
    path = route.path
    for name in route.parameters:
        path = path.replace(f"{{{name}}}", values.get(name, "unknown"))
    return path


def wrong_values(schema: dict[str, Any]) -> list[Any]:
    """Values that do not fit, for a field of whatever type."""
    return [[], {"x": {}}, -1e308, 10**30, "\x00", "x" * 5000, True]


@pytest.mark.parametrize("route", PRIVATE, ids=name_of)
def test_without_a_valid_key(gateway: Any, route: Route) -> None:
    for key in (None, "nonsense", "lsp_0123456789abcdef_" + "0" * 64):
        with Client(gateway.url, key) as nobody:
            is_error(nobody.request(route.method, address(route)), None, None)
            assert nobody.request(route.method, address(route)).status_code in (401, 429)


@pytest.mark.parametrize("route", [route for route in PRIVATE if route.parameters], ids=name_of)
def test_unknown_names(client: Client, sandbox: str, route: Route) -> None:
    bodies: list[Any] = [{}] if route.request is not None else [None]
    for values in ({}, {"sandbox_id": sandbox}, {"sandbox_id": "%00"}, {"sandbox_id": "x" * 3000}):
        if values.get("sandbox_id") == sandbox and (route.upload or route.path.endswith(NAMES_NO_MORE)):
            continue
        for body in bodies:
            answer = client.request(route.method, address(route, **values), json=body)
            is_error(answer)
            assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize("route", [route for route in API if route.request is not None], ids=name_of)
@pytest.mark.parametrize("body", BODIES, ids=[str(body[:12]) for body in BODIES])
def test_bodies_that_are_no_request(client: Client, sandbox: str, route: Route, body: bytes) -> None:
    answer = client.request(
        route.method,
        address(route, sandbox_id=sandbox),
        content=body,
        headers={"Content-Type": "application/json"},
    )
    if body == b"" and route.request_optional:
        assert answer.status_code < 500
        return
    is_error(answer)
    assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize("route", [route for route in API if route.request is not None], ids=name_of)
def test_wrong_types_and_huge_values_in_every_field(client: Client, sandbox: str, route: Route) -> None:
    api = client.get("/openapi.json").json()
    content = api["paths"][route.path][route.method.lower()]["requestBody"]["content"]["application/json"]
    schema = api["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    for field, kind in schema["properties"].items():
        for value in wrong_values(kind):
            answer = client.request(route.method, address(route, sandbox_id=sandbox), json={field: value})
            if answer.status_code < 300:  # it fits this field, and no other is required
                undo(client, route, answer)
                continue
            is_error(answer)
            assert 400 <= answer.status_code < 500, (field, value, answer.text)


def undo(client: Client, route: Route, answer: httpx.Response) -> None:
    if route.path == "/user/apikeys":
        client.delete(f"/user/apikeys/{answer.json()['id']}")
    elif route.path.endswith("/contexts"):
        client.delete(f"{answer.request.url.path.removeprefix('/api/v1')}/{answer.json()['id']}")


@pytest.mark.parametrize("route", [route for route in API if route.request is not None], ids=name_of)
def test_wrong_content_types(client: Client, sandbox: str, route: Route) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "x"):
        answer = client.request(
            route.method,
            address(route, sandbox_id=sandbox),
            content=b'{"a": 1}',
            headers={"Content-Type": kind},
        )
        is_error(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("route", PRIVATE, ids=name_of)
def test_bad_query_values(client: Client, sandbox: str, route: Route) -> None:
    queries: list[dict[str, Any]] = [{"nonsense": "1"}]
    for query in route.query:
        queries.append({query.name: [1, 2]})
        if query.of != "string":
            queries += [{query.name: value} for value in ("x", "", "1e9", "9" * 50, "\x00")]
        if query.choices:
            queries.append({query.name: "none of them"})
        queries.append({query.name: "x" * 5000})
    for values in queries:
        answer = client.request(route.method, address(route, sandbox_id=sandbox), params=values)
        is_error(answer)
        assert 400 <= answer.status_code < 500, (values, answer.text)


def test_paths_and_methods_that_are_not_there(client: Client) -> None:
    for path in ("/", "/nothing", "/sandboxes/", "/sandboxes/x/y/z", "/%00", "/%ff%fe"):
        answer = client.get(path)
        is_error(answer)
        assert answer.status_code in (400, 404)
    for route in API:
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}:
            known = {each.method for each in API if each.path == route.path}
            if method in known or route.path.endswith(("{path}", "{path}/move")):
                continue
            answer = client.request(method, address(route))
            error = is_error(answer)
            if answer.status_code == 405:
                assert set(answer.headers["allow"].split(", ")) == set(error["details"]["allowed"])
            else:
                assert answer.status_code == 404
    is_error(client.request("BREW", "/sandboxes"), 405, "method_not_allowed")


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_that_are_too_large(client: Client, announced: bool) -> None:
    size = 2 * 1024 * 1024

    def pieces() -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b" " * 65536

    body: Any = b" " * size if announced else pieces()
    try:
        answer = client.post("/users", content=body, headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        assert announced  # the answer was sent before the body was taken, and the connection closed
    else:
        is_error(answer, 413, "payload_too_large")


def test_a_body_where_none_is_taken(client: Client, sandbox: str) -> None:
    is_error(client.request("DELETE", "/sandboxes/unknown", json={"a": 1}), 400, "invalid_request")
    is_error(client.request("GET", f"/sandboxes/{sandbox}", content=b"x"), 400, "invalid_request")


def test_bad_headers(client: Client, sandbox: str) -> None:
    key = {"Idempotency-Key": "x" * 300}
    is_error(client.post("/sandboxes", json={"runtime": "python"}, headers=key), 400, "invalid_request")
    answer = client.get("/user", headers={"X-Request-Id": "a b\tc" + "x" * 100})
    assert " " not in answer.headers["x-request-id"]
    for value in ("Basic x", "Bearer", "Bearer a b", "Bearer \xe9", "x" * 5000):
        with httpx.Client(base_url=client.base_url, timeout=60) as plain:
            answer = plain.get("/user", headers={b"Authorization": value.encode("latin-1")})
            is_error(answer)
            assert answer.status_code in (400, 401, 429)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /api/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/v1/users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_http_is_closed(gateway: Any, request_bytes: bytes) -> None:
    address = urlsplit(gateway.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port), timeout=30) as raw:
        raw.sendall(request_bytes)
        raw.settimeout(30)
        answer = b""
        try:
            while piece := raw.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer:
                    break
        except ConnectionResetError:
            return
    assert answer == b"" or answer.split()[1].startswith(b"4")


def test_unknown_things_of_a_living_sandbox(client: Client, sandbox: str) -> None:
    unknown = uuid.uuid4().hex
    base = f"/sandboxes/{sandbox}"
    for method, path, body in (
        ("GET", f"/executions/{unknown}", None),
        ("GET", f"/executions/{unknown}/events", None),
        ("POST", f"/executions/{unknown}/interrupt", None),
        ("DELETE", f"/contexts/{unknown}", None),
        ("POST", f"/contexts/{unknown}/restart", None),
        ("GET", f"/commands/{unknown}", None),
        ("GET", f"/commands/{unknown}/events", None),
        ("DELETE", f"/commands/{unknown}", None),
        ("POST", f"/commands/{unknown}/stdin", {"data": "x"}),
        ("POST", f"/commands/{unknown}/signal", {}),
        ("GET", f"/files/{unknown}", None),
        ("DELETE", f"/files/{unknown}", None),
        ("POST", f"/files/{unknown}/move", {"target": "x"}),
    ):
        is_error(client.request(method, base + path, json=body), 404, "not_found")
