"""`llmsafespace sandboxes list|create|delete`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from llmsafespace.cli import common
from llmsafespace.errors import NotFound, SandboxEnded
from llmsafespace.models import SandboxInfo
from llmsafespace.outputs import SandboxWarning
from llmsafespace.sync import Sandbox

_HEADINGS = ("ID", "RUNTIME", "STATE", "START", "CREATED")


def add(commands: common.Subparsers) -> None:
    """Register the subcommands."""
    parser = commands.add_parser("sandboxes", help="list, create and delete sandboxes")
    parts = parser.add_subparsers(dest="part", metavar="list|create|delete", required=True)
    listing = common.command(
        parts,
        "list",
        act_list,
        "list your sandboxes",
        "  llmsafespace sandboxes list --state running --json\n",
    )
    listing.add_argument("--state", choices=("creating", "running", "ended"), help="only these")
    listing.add_argument("--json", action="store_true", help="one JSON document per line")
    creating = common.command(
        parts,
        "create",
        act_create,
        "create a sandbox and print its id",
        "  llmsafespace sandboxes create --runtime python:3.12 --idle-timeout 3600\n",
    )
    common.add_creation(creating)
    creating.add_argument("--idle-timeout", type=float, default=600.0, metavar="SECONDS", help="default: 600")
    deleting = common.command(
        parts, "delete", act_delete, "end sandboxes", "  llmsafespace sandboxes delete sb-1 sb-2\n"
    )
    deleting.add_argument("id", nargs="+", help="a sandbox's id")


def act_list(options: argparse.Namespace) -> int:
    """Print a table, or JSON lines."""
    infos = Sandbox.list(state=options.state, **common.where(options))
    if options.json:
        for info in infos:
            print(json.dumps(info.raw))
    elif infos or sys.stdout.isatty():
        rows = [_HEADINGS, *map(_row, infos)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(info: SandboxInfo) -> tuple[str, ...]:
    state = f"ended ({info.end})" if info.end else info.state
    created = info.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (info.id, info.runtime, state, info.start.kind, created)


def act_create(options: argparse.Namespace) -> int:
    """Create one; its id on stdout, alone."""
    if options.url is None and options.key is None:
        common.require_lasting_gateway()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SandboxWarning)
        sandbox = Sandbox(idle_timeout=options.idle_timeout, **common.creation(options))
    for warning in sandbox.warnings:
        print(f"llmsafespace: {warning}", file=sys.stderr)
    print(sandbox.id)
    sandbox.close()
    return 0


def act_delete(options: argparse.Namespace) -> int:
    """End them; 1 when one was not there."""
    status = 0
    for sandbox_id in options.id:
        try:
            gone = Sandbox.connect(sandbox_id, **common.where(options)).terminate()
        except (NotFound, SandboxEnded):
            gone = False
        if not gone:
            print(f"llmsafespace: there is no living sandbox {sandbox_id} of yours", file=sys.stderr)
            status = 1
    return status
