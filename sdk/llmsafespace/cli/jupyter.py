"""`llmsafespace jupyter install`: a sandbox kernel beside the local ones."""

from __future__ import annotations

import argparse
import sys

from llmsafespace.cli import common
from llmsafespace.jupyter.install import default_prefix, install

_EXAMPLES = """  llmsafespace jupyter install
  llmsafespace jupyter install --runtime python:3.12 --env MODE=test --name sandbox-312
  LLMSAFESPACE_API_KEY=… jupyter nbconvert --execute --to html notebook.ipynb
"""


def add(commands: common.Subparsers) -> None:
    """Register the subcommand."""
    parser = commands.add_parser("jupyter", help="sandbox kernels in Jupyter applications")
    parts = parser.add_subparsers(dest="part", metavar="install", required=True)
    installing: argparse.ArgumentParser = parts.add_parser(
        "install",
        help="install a kernel specification",
        description="Install a kernel specification: every Jupyter application then offers sandbox kernels. "
        "The API key is not written to it: it is taken from LLMSAFESPACE_API_KEY when a kernel starts.",
        epilog=f"examples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    installing.set_defaults(act=act)
    installing.add_argument(
        "--url", help="the gateway (default: $LLMSAFESPACE_API_URL at start, or a private one)"
    )
    installing.add_argument("--runtime", help="as python:3.12 or bash (default: the gateway's own)")
    installing.add_argument("--env", type=common.pair, action="append", default=[], metavar="NAME=VALUE")
    installing.add_argument("--name", default="llmsafespace", help="the kernel's name (default: %(default)s)")
    installing.add_argument("--display-name", help="what applications show (default: from the runtime)")
    place = installing.add_mutually_exclusive_group()
    place.add_argument(
        "--user", action="store_true", help="for this user (the default outside an environment)"
    )
    place.add_argument("--prefix", help="beneath this prefix, as sys.prefix of an environment")


def act(options: argparse.Namespace) -> int:
    """Install it, and print where."""
    prefix = None if options.user else options.prefix or default_prefix()
    path = install(
        name=options.name,
        display_name=options.display_name,
        runtime=options.runtime,
        url=options.url,
        env=dict(options.env),
        prefix=prefix,
    )
    print(path)
    print(f"Kernel {options.name!r} is there: try `jupyter console --kernel {options.name}`", file=sys.stderr)
    return 0
