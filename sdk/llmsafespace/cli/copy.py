"""`llmsafespace cp`: files into and out of a sandbox."""

from __future__ import annotations

import argparse
import re
from contextlib import closing
from pathlib import Path, PurePosixPath

from llmsafespace.cli import common
from llmsafespace.errors import InvalidRequest
from llmsafespace.sync import Sandbox

_EXAMPLES = """  llmsafespace cp data.csv sb-1:data.csv
  llmsafespace cp sb-1:/workspace/model.bin .
"""
_REMOTE = re.compile(r"(sb-[A-Za-z0-9_-]+):(.*)", re.DOTALL)


def add(commands: common.Subparsers) -> None:
    """Register the subcommand."""
    parser = common.command(commands, "cp", act, "copy a file into or out of a sandbox", _EXAMPLES)
    parser.add_argument("source", help="a local path, or ID:PATH")
    parser.add_argument("target", help="ID:PATH, or a local path")


def act(options: argparse.Namespace) -> int:
    """Copy it."""
    source, target = _REMOTE.fullmatch(options.source), _REMOTE.fullmatch(options.target)
    if (source is None) == (target is None):
        raise InvalidRequest("cp: one of the two must be ID:PATH, the other a local path")
    if target is not None:
        with closing(Sandbox.connect(target[1], **common.where(options))) as sandbox:
            _upload(sandbox, Path(options.source), target[2])
    elif source is not None:
        with closing(Sandbox.connect(source[1], **common.where(options))) as sandbox:
            _download(sandbox, source[2], Path(options.target))
    return 0


def _upload(sandbox: Sandbox, local: Path, remote: str) -> None:
    size = local.stat().st_size
    if remote == "" or remote.endswith("/"):
        remote += local.name
    with common.progress(local.name, size) as advance:
        sandbox.upload_file(remote, local, on_progress=advance)


def _download(sandbox: Sandbox, remote: str, local: Path) -> None:
    size = sandbox.files.stat(remote).size
    with common.progress(PurePosixPath(remote).name, size) as advance:
        sandbox.download_file(remote, local, on_progress=advance)
