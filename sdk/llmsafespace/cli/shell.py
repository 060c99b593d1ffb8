"""`llmsafespace exec ID -- CMD`."""

from __future__ import annotations

import argparse
import shlex
import sys

from llmsafespace.cli import common
from llmsafespace.events import Gap, Stderr, Stdout
from llmsafespace.sync import Sandbox

_EXAMPLES = """  llmsafespace exec sb-1 -- python -c 'print(1)'
  llmsafespace exec sb-1 -- sh -c 'ls | wc -l'
  cat numbers | llmsafespace exec --stdin sb-1 -- sort -n
"""


def add(commands: common.Subparsers) -> None:
    """Register the subcommand."""
    parser = common.command(commands, "exec", act, "run a command in a sandbox", _EXAMPLES)
    parser.add_argument("--cwd", help="the folder to run it in")
    parser.add_argument("--env", type=common.pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--timeout", type=float, help="seconds that it may take")
    parser.add_argument("--stdin", action="store_true", help="give it this command's standard input")
    parser.add_argument("id", help="the sandbox's id")
    parser.add_argument("cmd", nargs="+", help="the command and its arguments, after --")


def act(options: argparse.Namespace) -> int:
    """Run it; its exit status (128 + N after signal N)."""
    sandbox = Sandbox.connect(options.id, **common.where(options))
    try:
        output = sandbox.stream_command(
            shlex.join(options.cmd),
            cwd=options.cwd,
            env=dict(options.env),
            timeout=options.timeout,
            stdin=sys.stdin.buffer.read() if options.stdin else None,
        )
        with output:
            for event in output.events():
                if isinstance(event, Stdout):
                    print(event.text, end="", flush=True)
                elif isinstance(event, (Stderr, Gap)):
                    print(event.text, end="", flush=True, file=sys.stderr)
        end = output.end
        if end is None:
            return 1
        if end.end not in ("ok", "error"):
            print(f"llmsafespace: {end.error or end.end}", file=sys.stderr)
        return end.exit_code if end.exit_code >= 0 else 128 - end.exit_code
    finally:
        sandbox.close()
