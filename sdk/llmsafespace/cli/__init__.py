"""The command line: `llmsafespace run|sandboxes|exec|cp|jupyter`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from llmsafespace.cli import common, copy, jupyter, run, sandboxes, shell
from llmsafespace.errors import SandboxError

_EXAMPLES = """examples:
  llmsafespace run script.py                      run a file in a fresh sandbox
  echo 'print(6 * 7)' | llmsafespace run -        run standard input
  llmsafespace sandboxes create --runtime python:3.12
  llmsafespace cp data.csv sb-1:data.csv          copy a file into a sandbox
  llmsafespace exec sb-1 -- python -V             run a command in it
  llmsafespace jupyter install                    sandbox kernels in your Jupyter applications

The gateway is taken from --url and --key, or LLMSAFESPACE_API_URL and LLMSAFESPACE_API_KEY. With none of
them, and llmsafespace-gateway installed here, a private gateway serves this one command.
Exit status: that of the code or command that ran; 2 for wrong usage; 3 when the gateway refuses or is away.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        "llmsafespace",
        description="Run untrusted code in isolated, warm, real Jupyter kernels.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"llmsafespace {version('llmsafespace')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (run, sandboxes, shell, copy, jupyter):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `llmsafespace`; the exit status."""
    options = parser().parse_args(arguments)
    common.print_any_text()
    try:
        return int(options.act(options))
    except SandboxError as error:
        return _complain(error.message, 3)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        return 130


def _complain(message: str, status: int) -> int:
    print(f"llmsafespace: {' '.join(message.split())}", file=sys.stderr)
    return status
