"""The API's description is valid OpenAPI 3.1 in structure, and says what the routes do."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import API
from llmsafespace_gateway.rest.openapi import document
from llmsafespace_gateway.rest.routing import Query, Router


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    described: dict[str, Any] = json.loads(msgspec.json.encode(document(API, "1.2.3")))
    return described


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def test_every_route_is_described(api: dict[str, Any]) -> None:
    assert api["openapi"] == "3.1.0"
    for route in API:
        operation = api["paths"][route.path][route.method.lower()]
        assert operation["summary"] == route.summary
        assert str(route.status) in operation["responses"]
        named = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", route.path))
        assert ("requestBody" in operation) == (route.request is not None or route.upload)
        if not route.public:
            assert "401" in operation["responses"]


def test_operation_ids_are_unique(api: dict[str, Any]) -> None:
    ids = [operation["operationId"] for path in api["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


def test_references_lead_somewhere(api: dict[str, Any]) -> None:
    for reference in references(api):
        name = reference.removeprefix("#/components/schemas/")
        assert name in api["components"]["schemas"], reference


def test_schemas_are_json_schema(api: dict[str, Any]) -> None:
    for schema in api["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_examples_fit_the_schemas(api: dict[str, Any]) -> None:
    root = {"components": api["components"], "$ref": "#/components/schemas/SandboxCreate"}
    check = Draft202012Validator(root)
    assert check.is_valid({"runtime": "python:3.10", "resources": {"cpu": "500m", "memory": "1Gi"}})
    assert not check.is_valid({"runtime": 3})
    assert not check.is_valid({"runtime": "x", "unknown": 1})


def test_the_contract_is_served() -> None:
    served = {(route.method, route.path) for route in API}
    sandbox = "/sandboxes/{sandbox_id}"
    wanted = {
        ("GET", "/sandboxes"),
        ("POST", "/sandboxes"),
        *((method, sandbox) for method in ("GET", "PATCH", "DELETE")),
        ("GET", f"{sandbox}/status"),
        ("POST", f"{sandbox}/execute"),
        ("GET", f"{sandbox}/executions"),
        ("GET", f"{sandbox}/executions/{{execution_id}}"),
        ("GET", f"{sandbox}/executions/{{execution_id}}/events"),
        ("POST", f"{sandbox}/executions/{{execution_id}}/interrupt"),
        ("GET", f"{sandbox}/files"),
        *((method, f"{sandbox}/files/{{path}}") for method in ("GET", "PUT", "DELETE")),
        ("POST", f"{sandbox}/files/{{path}}/move"),
        ("POST", f"{sandbox}/packages"),
        *((method, f"{sandbox}/contexts") for method in ("GET", "POST")),
        ("DELETE", f"{sandbox}/contexts/{{context_id}}"),
        ("POST", f"{sandbox}/contexts/{{context_id}}/restart"),
        *((method, f"{sandbox}/commands") for method in ("GET", "POST")),
        *((method, f"{sandbox}/commands/{{command_id}}") for method in ("GET", "DELETE")),
        ("POST", f"{sandbox}/commands/{{command_id}}/stdin"),
        ("POST", f"{sandbox}/commands/{{command_id}}/signal"),
        ("GET", "/runtimes"),
        ("GET", "/runtimes/{runtime_id}"),
        ("GET", "/profiles"),
        ("GET", "/profiles/{profile_id}"),
        *((method, "/warmpools") for method in ("GET", "POST")),
        *((method, "/warmpools/{name}") for method in ("GET", "PATCH", "DELETE")),
        ("GET", "/warmpools/{name}/status"),
        ("GET", "/user"),
        *((method, "/user/apikeys") for method in ("GET", "POST")),
        ("DELETE", "/user/apikeys/{key_id}"),
        ("GET", "/users"),
        ("GET", "/grants"),
        ("GET", "/audit"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
    }
    assert wanted <= served


def test_paths_are_found_by_method_and_decoded() -> None:
    router = Router(API)
    route, values = router.match("POST", "/sandboxes/sb-1/files/a%20b/c/move")
    assert (route.method, values) == ("POST", {"sandbox_id": "sb-1", "path": "a b/c"})
    route, values = router.match("GET", "/sandboxes/sb-1/files/dir/move")
    assert (route.method, values["path"]) == ("GET", "dir/move")
    assert router.match("HEAD", "/sandboxes/sb-1/files/x")[0].method == "GET"
    for method, path, code in (
        ("GET", "/nothing", "not_found"),
        ("PUT", "/sandboxes", "method_not_allowed"),
        ("GET", "/sandboxes/%ff", "invalid_request"),
        ("GET", "/sandboxes/a%00", "invalid_request"),
    ):
        with pytest.raises(ApiError) as caught:
            router.match(method, path)
        assert caught.value.code == code


@pytest.mark.parametrize("text", ["x", "0", "1001", "1.5", "9" * 40, "", "١"])
def test_bad_integers_in_a_query(text: str) -> None:
    with pytest.raises(ApiError, match=r"query\.limit"):
        Query("limit", "", "integer", 1, 1, 1000).parse(text)
