"""The CustomResourceDefinitions are made out of the types: the files are current and say what they say."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
import yaml
from msgspec import Meta, Struct, field

from llmsafespace_kube.resources.__main__ import text
from llmsafespace_kube.resources.crds import RESOURCES, RULES, Resource, definition
from llmsafespace_kube.resources.schema import Rule, Rules, schema_of
from llmsafespace_kube.resources.types import Resources
from llmsafespace_protocol.quantities import number

CRDS = Path(__file__).parents[2] / "deploy/helm/llmsafespace/crds"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind.plural)
def test_the_file_is_current(resource: Resource) -> None:
    file = CRDS / f"{resource.kind.plural}.yaml"
    assert file.read_text() == text(resource), "stale: run python -m llmsafespace_kube.resources"


def test_there_is_a_file_for_each_kind_and_no_other() -> None:
    assert {file.stem for file in CRDS.iterdir()} == {resource.kind.plural for resource in RESOURCES}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind.plural)
def test_a_file_has_no_anchors(resource: Resource) -> None:
    assert yaml.safe_load(text(resource)) == definition(resource)
    assert "&id" not in text(resource)


def test_every_rule_is_in_a_schema() -> None:
    found = {entry["message"] for resource in RESOURCES for entry in _validations(definition(resource))}
    assert found == {rule.message for rules in RULES.values() for rule in rules}


def _validations(node: Any) -> list[dict[str, str]]:
    if isinstance(node, list):
        return [entry for each in node for entry in _validations(each)]
    if not isinstance(node, dict):
        return []
    own: list[dict[str, str]] = node.get("x-kubernetes-validations", [])
    return own + [entry for each in node.values() for entry in _validations(each)]


class Part(Struct, rename="camel"):
    """A part."""

    some_name: Annotated[str, Meta(max_length=5, description="Its name.")]
    number: Annotated[int, Meta(ge=1, le=9)] = 3
    paths: Annotated[list[str], Meta(max_length=2)] = field(default_factory=lambda: ["/tmp"])


class Whole(Struct, rename="camel"):
    """A whole."""

    ready: bool = True
    kind: Literal["a", "b"] = "b"
    when: datetime | None = None
    empty: str = ""
    part: Part | None = None
    parts: list[Part] = []


class Defaults(Struct):
    """With defaults all the way down."""

    deep: Whole = field(default_factory=Whole)


def _property(struct: type[Struct], name: str) -> Any:
    return schema_of(struct, {})["properties"][name]


def test_what_a_struct_says_is_in_the_schema() -> None:
    assert _property(Whole, "part") == {
        "type": "object",
        "description": "A part.",
        "required": ["someName"],
        "properties": {
            "someName": {"type": "string", "maxLength": 5, "description": "Its name."},
            "number": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
            "paths": {"type": "array", "maxItems": 2, "items": {"type": "string"}, "default": ["/tmp"]},
        },
    }


def test_what_may_be_left_out_has_no_default() -> None:
    assert _property(Whole, "when") == {"type": "string", "format": "date-time"}
    assert "default" not in _property(Whole, "part")
    assert "default" not in _property(Whole, "empty")
    assert "default" not in _property(Whole, "parts")


def test_the_default_of_an_object_is_written_in_full() -> None:
    assert _property(Defaults, "deep")["default"] == {"ready": True, "kind": "b"}


def test_a_rule_stands_where_its_type_does() -> None:
    rules: Rules = {Part: [Rule("self.number > 1", "take more", ".number")]}
    entry = {"rule": "self.number > 1", "message": "take more", "fieldPath": ".number"}
    schema = schema_of(Whole, rules)["properties"]
    assert schema["part"]["x-kubernetes-validations"] == [entry]
    assert schema["parts"]["items"]["x-kubernetes-validations"] == [entry]


def test_a_number_or_text_is_said_as_structural_schemas_want_it() -> None:
    class Either(Struct):
        """Either."""

        one: Annotated[int, Meta(ge=0)] | Annotated[str, Meta(pattern="^a$")] | None = None

    assert _property(Either, "one") == {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "minimum": 0,
        "pattern": "^a$",
        "x-kubernetes-int-or-string": True,
    }


class Odd(Struct):
    """Odd."""

    odd: dict[str, str]


class Mixed(Struct):
    """Mixed."""

    mixed: bool | str


@pytest.mark.parametrize("struct", [Odd, Mixed])
def test_a_type_without_a_schema_is_an_error(struct: type[Struct]) -> None:
    with pytest.raises(TypeError, match="no schema"):
        schema_of(struct, {})


def test_quantities_are_text_however_a_manifest_says_them() -> None:
    plain = msgspec.json.decode(b'{"cpu": 1, "memory": 1073741824, "cpuPinning": true}', type=Resources)
    assert plain == Resources(cpu="1", memory="1073741824", cpu_pinning=True)
    assert number(plain.memory) == number("1Gi")
    assert msgspec.json.encode(plain) == b'{"cpu":"1","memory":"1073741824","cpuPinning":true}'


@pytest.mark.parametrize("value", ["1", "10", "500m", "0.5", "00.050", "1.0", "100.00Gi", "010"])
def test_quantities_above_zero_are_taken(value: str) -> None:
    made = msgspec.json.decode(f'{{"cpu": "{value}"}}', type=Resources)
    assert (made.cpu, number(made.cpu) > 0) == (value, True)


@pytest.mark.parametrize("value", ["0", '"0"', '"0m"', '"0.0"', '"000.000Gi"', '"0k"', "-0"])
def test_nothing_is_no_quantity_as_it_would_be_no_limit(value: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"cpu": {value}}}', type=Resources)


@pytest.mark.parametrize(
    "value", ["-1", '"-1"', '"much"', "true", "0.5", "null", '"1 Gi"', '"1."', '".5"', '"0.5.1"']
)
def test_what_is_no_quantity_is_refused(value: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f'{{"cpu": {value}}}', type=Resources)
