"""`llmsafespace jupyter install|list|remove`: sandbox kernels beside the local ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llmsafespace.cli import common
from llmsafespace.errors import NotFound
from llmsafespace.jupyter.install import Installed, default_prefix, install, installed, remove
from llmsafespace.settings import base_url

_EXAMPLES = """  llmsafespace jupyter install
  llmsafespace jupyter install --runtime python:3.12 --env MODE=test --name sandbox-312
  llmsafespace jupyter install --name data --package polars --file data.csv --memory 2Gi
  llmsafespace jupyter list
  llmsafespace jupyter remove data
  LLMSAFESPACE_API_KEY=… jupyter nbconvert --execute --to html notebook.ipynb
"""


def add(commands: common.Subparsers) -> None:
    """Register the subcommands."""
    parser = commands.add_parser("jupyter", help="sandbox kernels in Jupyter applications")
    parts = parser.add_subparsers(dest="part", metavar="install|list|remove", required=True)
    _add_install(parts)
    listing = _part(parts, "list", "list the sandbox kernels that Jupyter finds here", act_list)
    listing.add_argument("--json", action="store_true", help="one JSON document per line")
    removing = _part(parts, "remove", "remove sandbox kernels from Jupyter", act_remove)
    removing.add_argument("name", nargs="+", help="a kernel's name")
    for one in (listing, removing):
        place = one.add_mutually_exclusive_group()
        place.add_argument("--sys-prefix", action="store_true", help="only in this Python's environment")
        place.add_argument("--prefix", help="only beneath this prefix")


def _part(parts: common.Subparsers, name: str, summary: str, act: Any, more: str = "") -> Any:
    one = parts.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}{more}.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.set_defaults(act=act)
    return one


def _add_install(parts: common.Subparsers) -> None:
    more = (
        ": every Jupyter application then offers sandbox kernels. "
        "The API key is not written to it: it is taken from LLMSAFESPACE_API_KEY when a kernel starts"
    )
    one = _part(parts, "install", "install a kernel specification", act_install, more)
    one.add_argument("--name", default="llmsafespace", help="the kernel's name (default: %(default)s)")
    one.add_argument("--display-name", help="what applications show (default: from the runtime)")
    one.add_argument("--url", help="the gateway (default: $LLMSAFESPACE_API_URL at start, or a private one)")
    kernels = one.add_argument_group("sandboxes of its kernels")
    kernels.add_argument("--runtime", help="as python:3.12 or bash (default: the gateway's own)")
    kernels.add_argument("--env", type=common.pair, action="append", default=[], metavar="NAME=VALUE")
    kernels.add_argument(
        "--package", action="append", default=[], metavar="NAME", help="a package to install first"
    )
    kernels.add_argument(
        "--file",
        type=_file,
        action="append",
        default=[],
        metavar="LOCAL[:PATH]",
        help="a file to copy into each sandbox when it starts (default: by its own name)",
    )
    kernels.add_argument("--memory", help="as 2Gi")
    kernels.add_argument("--cpu", help="as 500m or 2")
    kernels.add_argument("--storage", help="as 4Gi")
    kernels.add_argument(
        "--security-level", "--profile", choices=("standard", "high", "custom"), help="default: standard"
    )
    kernels.add_argument("--warm-pool", metavar="NAME", help="take sandboxes from this warm pool")
    kernels.add_argument(
        "--idle-timeout", type=float, metavar="SECONDS", help="when a forgotten sandbox ends (default: 3600)"
    )
    place = one.add_argument_group("where").add_mutually_exclusive_group()
    place.add_argument("--user", action="store_true", help="for this user (default outside an environment)")
    place.add_argument("--sys-prefix", action="store_true", help="in this Python's environment (sys.prefix)")
    place.add_argument("--prefix", help="beneath this prefix")


def _file(text: str) -> tuple[str, str]:
    local, _, remote = text.partition(":")
    path = Path(local).expanduser().absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {local}")
    return remote or path.name, str(path)


def act_install(options: argparse.Namespace) -> int:
    """Install it; print where, and what was written."""
    resources = {"cpu": options.cpu, "memory": options.memory, "ephemeralStorage": options.storage}
    config = {
        "packages": options.package,
        "files": dict(options.file),
        "resources": {name: value for name, value in resources.items() if value is not None},
        "security_level": options.security_level,
        "warm_pool": options.warm_pool,
        "idle_timeout": options.idle_timeout,
    }
    path = install(
        name=options.name,
        display_name=options.display_name,
        runtime=options.runtime,
        url=_url(options.url),
        env=dict(options.env),
        config=config,
        prefix=None if options.user else _prefix(options) or default_prefix(),
    )
    print(path)
    written = json.loads((path / "kernel.json").read_text(encoding="utf-8"))
    for line in described(Installed(options.name, path, written)):
        print(line, file=sys.stderr)
    print(f"Kernel {options.name!r} is there: try `jupyter console --kernel {options.name}`", file=sys.stderr)
    return 0


def _url(text: str | None) -> str | None:
    return text if text is None or text.startswith("unix://") else base_url(text)


def described(one: Installed) -> list[str]:
    """What a specification says, a line for each setting; values of variables are not shown."""
    settings = {"display name": one.display_name, **one.config}
    if one.document.get("env"):
        settings["env"] = list(one.document["env"])
    lines = []
    for key, value in settings.items():
        pairs = [f"{name}={what}" for name, what in value.items()] if isinstance(value, dict) else value
        shown = ", ".join(map(str, pairs)) if isinstance(pairs, list) else str(pairs)
        lines.append(f"  {key.replace('_', ' ')}: {shown}")
    return lines


def act_list(options: argparse.Namespace) -> int:
    """Print each with its folder and settings, or JSON lines."""
    for one in installed(_prefix(options)):
        if options.json:
            document = {"name": one.name, "folder": str(one.folder), "displayName": one.display_name}
            print(json.dumps({**document, "config": one.config, "env": list(one.document.get("env") or {})}))
        else:
            print("\n".join([f"{one.name}  {one.folder}", *described(one)]))
    return 0


def act_remove(options: argparse.Namespace) -> int:
    """Remove them; 1 when one was not there."""
    status = 0
    for name in options.name:
        try:
            print(remove(name, _prefix(options)))
        except NotFound as error:
            print(f"llmsafespace: {error.message}", file=sys.stderr)
            status = 1
    return status


def _prefix(options: argparse.Namespace) -> str | None:
    return sys.prefix if options.sys_prefix else options.prefix
