"""The template: a process that has imported everything and does nothing but fork.

It has one thread, no event loop and no ZMQ context; history is off in its children. Each child is forked
twice, so that it belongs to the agent (the sandbox's reaper) and the agent sees how it ends.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from typing import Any

from .link import Link
from .preload import Preloaded, preload


def serve(link: Link) -> None:
    """Preload as the first message says, report, then fork for each request until the agent goes away."""
    options = link.receive()
    if options is None:
        return
    _import_kernel_parts("debugpy" in options["packages"])
    outcome = preload(options["packages"], options["scripts"])
    link.send({"problems": outcome.problems, "unforkable": outcome.unforkable})
    if outcome.unforkable:
        return
    gc.collect()
    gc.freeze()  # children's collections leave the shared pages alone
    while True:
        request = link.receive_with_socket()
        if request is None:
            return
        _fork(link, request[0], request[1], outcome)


def _import_kernel_parts(debugger: bool) -> None:
    from . import app

    app.decide_debugger(debugger)
    app.import_ahead()


def _fork(link: Link, order: dict[str, Any], passed: socket.socket | None, outcome: Preloaded) -> None:
    if passed is None:
        return
    middle = os.fork()
    if middle:
        passed.close()
        os.waitpid(middle, 0)
        return
    if os.fork():
        os._exit(0)
    status = 1
    try:
        link.close()
        os.setsid()
        outcome.randomness.renew()
        from .child import run

        status = run(Link(passed), order, outcome.namespace)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _leave(status)


def _leave(status: int) -> None:
    """End as an interpreter of its own would: exit handlers, flushed streams."""
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for the user's non-daemon threads
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    os._exit(status)
