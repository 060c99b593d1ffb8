"""Writes what is generated in docs/: `make docs`. A test checks that the committed files are current.

openapi.json from the routes of the REST API, scopes.md from the rights, command-line.md and configuration.md
from the gateway's subcommands and options, custom-resources.md from the schemas of the custom resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from traitlets.utils.importstring import import_item

from llmsafespace_gateway.access.principal import ROLES, SCOPES
from llmsafespace_gateway.app import GatewayApp
from llmsafespace_gateway.rest import API, openapi
from llmsafespace_kube.resources.crds import RESOURCES, definition

DOCS = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by `make docs`. Change the types instead. -->\n\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are put on one line."""
    lines = [list(head), ["---"] * len(list(head)), *map(list, rows)]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def api() -> str:
    """The OpenAPI document."""
    document = openapi.document(API, version("llmsafespace-gateway"))
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def scopes() -> str:
    """Which role has which scope, and what each scope is needed for."""
    roles = table(
        ("Scope", *ROLES),
        (
            (f"`{scope}`", *("yes" if scope in ROLES[role] else "" for role in ROLES))
            for scope in sorted(SCOPES)
        ),
    )
    needed = table(
        ("Request", "Scope", "What it does"),
        (
            (
                f"`{route.method} {route.path}`",
                "no key" if route.public else f"`{route.scope}`" if route.scope else "any key",
                route.summary,
            )
            for route in API
        ),
    )
    head = f"{NOTE}# Roles and scopes\n\nA key's scopes are within its user's role.\n\n"
    return f"{head}{roles}\n## Requests\n\n{needed}"


def configuration() -> str:
    """Every option of the gateway."""
    aliases = {target: name for name, target in GatewayApp.aliases.items()}
    rows = []
    for name, trait in sorted(GatewayApp.class_traits(config=True).items()):
        if trait.this_class is not GatewayApp:
            continue
        computed = f"_default_{name}" in vars(GatewayApp)
        default = "computed" if computed else f"`{trait.default_value_repr()}`"
        option = f"`--{aliases[f'GatewayApp.{name}']}`" if f"GatewayApp.{name}" in aliases else ""
        rows.append((f"`{name}`", option, type(trait).__name__, default, trait.help))
    head = ("Option", "On the command line", "Type", "Default", "What it means")
    return (
        f"{NOTE}# Configuration of the gateway\n\n"
        "In a configuration file `c.GatewayApp.OPTION = VALUE`; on the command line\n"
        f"`--GatewayApp.OPTION=VALUE` or the short form.\n\n{table(head, rows)}"
    )


def command_line() -> str:
    """Every subcommand and its options; those of serving are in configuration.md."""
    parts = [_subcommand(each) for each in _subcommands(GatewayApp)]
    return (
        f"{NOTE}# Command line of the gateway\n\n"
        "Every command takes `--config FILE`, the gateway's own configuration file, and `--help`.\n"
        "Exit status: 0; 1 when it failed, with one line that says why; 2 when the command line is wrong.\n\n"
        + "\n".join(parts)
    )


def _subcommands(app: Any) -> Iterator[Any]:
    for found, _ in app.subcommands.values():
        kind = import_item(found) if isinstance(found, str) else found
        if not kind.subcommands:
            yield kind
        yield from _subcommands(kind)


def _subcommand(kind: Any) -> str:
    words = " ".join((kind.name, *getattr(kind, "arguments", ())))
    text = f"## {words}\n\n{' '.join(kind.description.split())}\n"
    if issubclass(kind, GatewayApp):
        return f"{text}\nIts options are in [configuration.md](configuration.md).\n"
    rows = []
    for name, target in kind.aliases.items():
        owner, _, trait = target.partition(".")
        if owner != "JupyterApp":
            traits = (GatewayApp if owner == "GatewayApp" else kind).class_traits()
            rows.append((f"`--{name}`", traits[trait].help))
    rows += [(f"`--{name}`", text) for name, (_, text) in kind.flags.items()]
    return f"{text}\n{table(('Option', 'What it means'), rows)}"


def custom_resources() -> str:
    """Every field of the custom resources."""
    parts = []
    for resource in RESOURCES:
        for served in definition(resource)["spec"]["versions"]:
            schema = served["schema"]["openAPIV3Schema"]
            rows = list(_fields(schema))
            text = " ".join(schema.get("description", "").split())
            head = ("Field", "Type", "Default", "What it means")
            parts.append(f"## {resource.kind.kind} ({served['name']})\n\n{text}\n\n{table(head, rows)}")
    return f"{NOTE}# Custom resources\n\nGroup `llmsafespace.dev`.\n\n" + "\n".join(parts)


def _fields(schema: dict[str, Any], above: str = "") -> Iterator[tuple[str, str, str, str]]:
    for name, field in schema.get("properties", {}).items():
        if not above and name in ("apiVersion", "kind", "metadata"):
            continue
        path = f"{above}.{name}" if above else name
        kind = field.get("type", "")
        items = field.get("items", {})
        if items:
            kind = f"{kind} of {items.get('type', 'any')}"
        default = f"`{msgspec.json.encode(field['default']).decode()}`" if "default" in field else ""
        needed = " Required." if name in schema.get("required", ()) else ""
        enum = f" One of {', '.join(map(str, field['enum']))}." if "enum" in field else ""
        yield f"`{path}`", kind, default, f"{field.get('description', '')}{enum}{needed}"
        yield from _fields(field, path)
        yield from _fields(items, f"{path}[]")


FILES = {
    "openapi.json": api,
    "reference/scopes.md": scopes,
    "reference/command-line.md": command_line,
    "reference/configuration.md": configuration,
    "reference/custom-resources.md": custom_resources,
}


def main() -> None:
    """Write all of them."""
    for name, make in FILES.items():
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
