"""`llmsafespace run`: a file, or standard input, in a fresh sandbox."""

from __future__ import annotations

import argparse
import base64
import sys
import warnings
from pathlib import Path

from llmsafespace.cli import common
from llmsafespace.events import Display, Error, Event, Gap, Stderr, Stdout, Update
from llmsafespace.outputs import SandboxWarning
from llmsafespace.results import Execution, Result
from llmsafespace.sync import Sandbox

_EXAMPLES = """  llmsafespace run script.py
  llmsafespace run --runtime python:3.12 --package requests --env TOKEN script.py
  llmsafespace run --output-dir plots figure.py
  echo 'echo $BASH_VERSION' | llmsafespace run --runtime bash -
"""
_PICTURES = {"png": "png", "jpeg": "jpg", "svg": "svg", "pdf": "pdf"}


def add(commands: common.Subparsers) -> None:
    """Register the subcommand."""
    parser = common.command(
        commands, "run", act, "run a file in a fresh sandbox and stream its output", _EXAMPLES
    )
    parser.add_argument("file", help="the code; - reads standard input")
    common.add_creation(parser)
    parser.add_argument("--language", help="the code's language (default: the runtime's)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="save displayed pictures in this folder"
    )


def act(options: argparse.Namespace) -> int:
    """Run it; the exit status of the execution."""
    code = common.source_text(options.file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SandboxWarning)
        with Sandbox(**common.creation(options)) as sandbox:
            for warning in sandbox.warnings:
                print(f"llmsafespace: {warning}", file=sys.stderr)
            with sandbox.stream_code(code, language=options.language) as output:
                for event in output.events():
                    _show(event)
                return _conclude(output.execution, options.output_dir)


def _show(event: Event) -> None:
    if isinstance(event, Stdout):
        print(event.text, end="", flush=True)
    elif isinstance(event, (Stderr, Gap)):
        print(event.text, end="", flush=True, file=sys.stderr)
    elif isinstance(event, Error):
        trace = event.error.traceback if sys.stderr.isatty() else event.error.plain_traceback
        print(trace or event.error, flush=True, file=sys.stderr)
    elif isinstance(event, (Display, Update)) and event.result.text is not None:
        print(event.result.text, flush=True)


def _conclude(execution: Execution, folder: Path | None) -> int:
    if execution.end not in ("ok", "error"):
        print(f"llmsafespace: {execution.error or execution.end}", file=sys.stderr)
    if folder is not None:
        for path in save_pictures(execution.results, folder):
            print(f"llmsafespace: saved {path}", file=sys.stderr)
    return execution.exit_code


def save_pictures(results: list[Result], folder: Path) -> list[Path]:
    """Write the best picture of each result to `folder`; their paths."""
    saved: list[Path] = []
    for result in results:
        kind = next((kind for kind in _PICTURES if getattr(result, kind) is not None), None)
        if kind is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"output-{len(saved) + 1}.{_PICTURES[kind]}"
        text = str(getattr(result, kind))
        path.write_bytes(text.encode() if kind == "svg" else base64.b64decode(text))
        saved.append(path)
    return saved
