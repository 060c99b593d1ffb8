"""Makes structural OpenAPI schemas, which CustomResourceDefinitions require, from msgspec types."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect as types

from llmsafespace_kube.resources.kubernetes import Metadata

Schema = dict[str, Any]


class Rule(msgspec.Struct, frozen=True):
    """A CEL rule and its message, which says what to do; `path` names the field that it checks."""

    rule: str
    message: str
    path: str = ""

    def validation(self) -> Schema:
        """Return the entry of `x-kubernetes-validations`."""
        entry = {"rule": self.rule, "message": self.message}
        return {**entry, "fieldPath": self.path} if self.path else entry


Rules = Mapping[type, Sequence[Rule]]


def schema_of(struct: type[msgspec.Struct], rules: Rules) -> Schema:
    """Return the schema of one custom resource, with the rules of every type in it.

    Raises TypeError for a type that has no structural schema.
    """
    made = _Maker(rules).schema(types.type_info(struct))
    kind = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
    return {**made, "properties": {**kind, **made["properties"]}}


class _Maker:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def schema(self, kind: types.Type) -> Schema:
        match kind:
            case types.Metadata(type=inner, extra_json_schema=extra):
                return {**self.schema(inner), **(extra or {})}
            case types.StructType(cls=cls):
                return {"type": "object"} if cls is Metadata else self._object(kind)
            case types.ListType(item_type=item):
                return {"type": "array", **_bounds(kind, "Items"), "items": self.schema(item)}
            case types.UnionType():
                return self._union(kind)
            case types.LiteralType(values=values):
                name = "boolean" if isinstance(values[0], bool) else "string"
                return {"type": name, "enum": list(values)}
            case types.StrType(pattern=pattern):
                schema = {"type": "string", **_bounds(kind, "Length")}
                return {**schema, "pattern": pattern} if pattern else schema
            case types.IntType(ge=least, le=most):
                bounds = {"minimum": least, "maximum": most}
                return {"type": "integer", **{key: each for key, each in bounds.items() if each is not None}}
            case types.BoolType():
                return {"type": "boolean"}
            case types.DateTimeType():
                return {"type": "string", "format": "date-time"}
        raise TypeError(f"no schema for {kind}")

    def _union(self, kind: types.UnionType) -> Schema:
        """`X | None` becomes an optional X: the API server drops null values unless `nullable` is set.

        `int | str` is the only other union that a structural schema can express; each keeps its own bounds.
        """
        match [each for each in kind.types if not isinstance(each, types.NoneType)]:
            case [inner]:
                return self.schema(inner)
            case [types.IntType() as number, types.StrType() as text]:
                either = [{"type": "integer"}, {"type": "string"}]
                bounds = {**self.schema(number), **self.schema(text)}
                del bounds["type"]
                return {"anyOf": either, **bounds, "x-kubernetes-int-or-string": True}
        raise TypeError(f"no schema for {kind}")

    def _object(self, kind: types.StructType) -> Schema:
        schema: Schema = {"type": "object", "description": inspect.cleandoc(kind.cls.__doc__ or "")}
        required = [field.encode_name for field in kind.fields if field.required]
        if required:
            schema["required"] = required
        schema["properties"] = {field.encode_name: self._field(field) for field in kind.fields}
        if rules := self._rules.get(kind.cls):
            schema["x-kubernetes-validations"] = [rule.validation() for rule in rules]
        return schema

    def _field(self, field: types.Field) -> Schema:
        schema = self.schema(field.type)
        default = _default(field, schema)
        return schema if default in (None, "", [], {}) else {**schema, "default": default}


def _bounds(kind: types.ListType | types.StrType, what: str) -> Schema:
    bounds = {f"min{what}": kind.min_length, f"max{what}": kind.max_length}
    return {key: each for key, each in bounds.items() if each is not None}


def _default(field: types.Field, schema: Schema) -> Any:
    """Return the default in JSON. An object's is written in full: rules are checked before defaulting."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is msgspec.NODEFAULT:
        return None
    if schema.get("type") == "object":
        return {name: each["default"] for name, each in schema["properties"].items() if "default" in each}
    return field.default_factory()
