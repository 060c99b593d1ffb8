"""Write into values.schema.json what the types of our programs say: `python deploy/helm/schema.py`.

The file is kept by hand but for its definitions whose names begin with a capital: those are made here, out
of the types of the custom resources, the options of the gateway, and what Kubernetes calls a quantity. Helm
reads draft 7 of JSON Schema.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
from traitlets import Bool, Dict, Enum, Float, Int, List, TraitType, Unicode

from llmsafespace_gateway.access.quotas import Quota
from llmsafespace_gateway.app import GatewayApp
from llmsafespace_kube.resources import types

FILE = Path(__file__).parent / "llmsafespace" / "values.schema.json"
Schema = dict[str, Any]

SPECS = (types.WarmPoolSpec, types.SandboxProfileSpec, types.RuntimeEnvironmentSpec)
# What the chart itself says to the gateway, and what makes no sense in a pod.
NOT_FOR_VALUES = {
    "backend",
    "data_dir",
    "database_url",
    "database_url_file",
    "drain_delay",
    "drain_timeout",
    "embedded",
    "first_key_file",
    "insecure_no_isolation",
    "ip",
    "kubernetes_settings",
    "port",
    "runtime_packages",
    "runtimes_dir",
    "socket",
    "trusted_proxies",
    "warm_pools",
}
_POSITIVE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"
CPU = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": f"^{_POSITIVE}m?$"},
    ]
}
BYTES = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": f"^{_POSITIVE}(k|Ki|M|Mi|G|Gi|T|Ti)?$"},
    ]
}
AMOUNTS: Schema = {
    "type": "object",
    "properties": {
        "cpu": {"$ref": "#/definitions/Cpu"},
        "memory": {"$ref": "#/definitions/Bytes"},
        "ephemeral-storage": {"$ref": "#/definitions/Bytes"},
    },
    "additionalProperties": False,
}


def definitions() -> Schema:
    """All that are made here, by name."""
    everything: list[Any] = [*SPECS, Quota]
    _, components = msgspec.json.schema_components(everything, ref_template="#/definitions/{name}")
    found = {name: _strict(schema) for name, schema in components.items()}
    found["RuntimeEnvironmentSpec"]["required"] = ["language"]  # the chart knows the images of ours
    found["RuntimeEnvironmentSpec"]["properties"]["image"] = {"type": "string", "maxLength": 512}
    made = {"Cpu": CPU, "Bytes": BYTES, "Amounts": AMOUNTS, "GatewayConfig": gateway_config()}
    return dict(sorted({**found, **made}.items()))


def gateway_config() -> Schema:
    """The options of the gateway that a values file may set."""
    traits = {**GatewayApp.class_own_traits(config=True), "log_level": GatewayApp.class_traits()["log_level"]}
    names = sorted(traits.keys() - NOT_FOR_VALUES)
    options = {name: _option(name, traits[name]) for name in names}
    return {"type": "object", "properties": options, "additionalProperties": False}


def _option(name: str, trait: TraitType[Any, Any]) -> Schema:
    schema = {"$ref": "#/definitions/Quota"} if name == "quotas" else _type(trait)
    return {"description": trait.help, **schema} if trait.help else schema


def _type(trait: TraitType[Any, Any]) -> Schema:
    match trait:
        case Bool():
            return {"type": "boolean"}
        case Enum(values=values):
            return {"enum": list(values)}
        case Int() | Float():
            bounds = {"minimum": getattr(trait, "min", None), "maximum": getattr(trait, "max", None)}
            kind = "integer" if isinstance(trait, Int) else "number"
            finite = {key: each for key, each in bounds.items() if each is not None and math.isfinite(each)}
            # Nothing that is counted or waited for is below zero.
            return {"type": kind, "minimum": 0, **finite}
        case List():
            inner = trait._trait
            return {"type": "array", "items": _type(inner) if inner is not None else {}}
        case Dict():
            return {"type": "object"}
        case Unicode():
            return {"type": "string"}
    raise TypeError(f"no schema is known for options of the type {type(trait).__name__}")


def _strict(schema: Schema) -> Schema:
    """Without fields that nobody reads: the API server drops those silently."""
    if "properties" in schema:
        return {**schema, "additionalProperties": False}
    return schema


def text() -> str:
    """The file as it should be."""
    document = json.loads(FILE.read_text())
    kept = {name: each for name, each in document["definitions"].items() if not name[0].isupper()}
    document["definitions"] = {**kept, **definitions()}
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
