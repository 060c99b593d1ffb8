"""What the REST API takes, a custom resource can say: the limits of fields that both have are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_protocol import quantities

ROOT = Path(__file__).parents[2]
API = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
LIMITS = (
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "pattern",
    "enum",
)
# Where the two formats differ, and what keeps them together.
DIFFERENT = {
    ".runtime": "the gateway refuses a runtime that there is not, whatever its name looks like",
    ".resources.cpu": "the API takes more spellings; what the gateway writes is tested below",
    ".resources.memory": "as cpu",
    ".resources.ephemeralStorage": "as cpu",
    ".timeout minimum": "whole seconds: shorter ones are rounded up",
    ".networkAccess.ingress": "the gateway refuses true, with a reason",
    ".warmPool pattern": "a name that no object can have is a pool that there is not",
}


def spec_of(plural: str) -> dict[str, Any]:
    """The schema of a custom resource's spec."""
    text = (ROOT / "deploy/helm/llmsafespace/crds" / f"{plural}.yaml").read_text()
    version = yaml.safe_load(text)["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


SANDBOX = spec_of("sandboxes")


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of the API without references, and without the null that stands for an absent field."""
    while True:
        if "$ref" in schema:
            schema = API[schema["$ref"].rpartition("/")[2]]
            continue
        others = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
        if len(others) != 1:
            return schema
        schema = others[0]


def differences(rest: dict[str, Any], custom: dict[str, Any], path: str = "") -> Iterator[str]:
    """Fields and limits that differ, as `.networkAccess.egress maxItems: 256, 128`."""
    rest = plain(rest)
    for name in LIMITS:
        if rest.get(name) != custom.get(name) and not {path, f"{path} {name}"} & DIFFERENT.keys():
            yield f"{path} {name}: {rest.get(name)}, {custom.get(name)}"
    for name, schema in rest.get("properties", {}).items():
        if name in custom.get("properties", {}):
            yield from differences(schema, custom["properties"][name], f"{path}.{name}")
    if "items" in rest and "items" in custom:
        yield from differences(rest["items"], custom["items"], f"{path}[]")


def test_sandboxes() -> None:
    assert list(differences(API["SandboxCreate"], SANDBOX)) == []


def test_pools() -> None:
    assert list(differences(API["WarmPoolCreate"], spec_of("warmpools"))) == []
    assert list(differences(API["WarmPoolPatch"], spec_of("warmpools"))) == []


@given(
    st.floats(quantities.MIN_CPU, quantities.MAX_CPU), st.integers(quantities.MIN_BYTES, quantities.MAX_BYTES)
)
def test_a_custom_resource_can_say_every_quantity(cpu: float, size: int) -> None:
    fields = SANDBOX["properties"]["resources"]["properties"]
    cores, memory = quantities.format_cores(cpu), quantities.format_size(size)
    assert re.match(fields["cpu"]["pattern"], cores)
    assert re.match(fields["memory"]["pattern"], memory)
    assert len(memory) <= fields["memory"]["maxLength"]
    assert cpu <= quantities.cores(cores) + 1e-6
    assert quantities.size(memory) == size


def test_a_difference_is_seen() -> None:
    rest = {"properties": {"a": {"type": "array", "maxItems": 3, "items": {"maximum": 1}}}}
    custom = {"properties": {"a": {"type": "array", "maxItems": 4, "items": {"maximum": 2}}}}
    assert list(differences(rest, custom)) == [".a maxItems: 3, 4", ".a[] maximum: 1, 2"]
