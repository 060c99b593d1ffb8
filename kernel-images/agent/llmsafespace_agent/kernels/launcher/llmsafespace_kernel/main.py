"""What `launch.py` does: serve as a template, or be one kernel."""

from __future__ import annotations

import os
import socket

from .link import Link
from .memory import keep_freed_memory


def main(arguments: list[str]) -> None:
    """`template FD` serves fork requests until the agent closes FD; `kernel FD` is one kernel."""
    mode, descriptor = arguments
    keep_freed_memory()
    os.environ.pop("JPY_PARENT_PID", None)  # else ipykernel would end with the process that it names
    link = Link(socket.socket(fileno=int(descriptor)))
    os.set_inheritable(link.fileno(), False)
    if mode == "template":
        from .template import serve

        serve(link)
    else:
        from .child import run_started

        run_started(link)
