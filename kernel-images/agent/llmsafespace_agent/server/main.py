"""The agent's start: protects itself, starts the kernels' template as early as it can, then the rest."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from llmsafespace_agent.allocator import keep_freed_memory

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_MAX_CONFIG = 16 * 1024 * 1024
BAD_CONFIGURATION = 2


def main(arguments: list[str] | None = None) -> int:
    """Run an agent; returns its exit code: 0 terminated, 10 expired, 1 failed, 2 bad configuration."""
    _protect()
    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        document = _configuration(given)
    except OSError as error:
        print(f"the configuration cannot be read: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    from llmsafespace_agent.server.start import run  # after the protection, and only when it is needed

    return run(document)


def _protect() -> None:
    """Nobody under the same user may read this process; its orphans come to it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A terminal's interrupt is the kernels' business. Unlike SIG_IGN, a handler is not passed on to commands.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    os.umask(0o022)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def _configuration(arguments: list[str]) -> bytes:
    """`--config FILE`, or standard input to its end, which is then /dev/null. Raises OSError."""
    if arguments[:1] == ["--config"] and len(arguments) == 2:
        with open(arguments[1], "rb") as file:
            document = file.read(_MAX_CONFIG)
    else:
        document = sys.stdin.buffer.read(_MAX_CONFIG)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return document
