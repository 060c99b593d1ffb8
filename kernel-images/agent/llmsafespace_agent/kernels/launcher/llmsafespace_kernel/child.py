"""One kernel: initialized, parked until the agent binds it, then running."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from typing import Any

from .link import Link

_OOM_SCORE = "500"  # memory pressure should take the kernel, not the agent that tells of it


def run_started(link: Link) -> None:
    """The kernel of a process of its own (exec): options come first, preloads run here."""
    order = link.receive()
    if order is None:
        return
    from . import app

    app.decide_debugger("debugpy" in order["packages"])
    namespace: dict[str, Any] = {}
    if order["packages"] or order["scripts"]:
        from .preload import preload

        namespace = preload(order["packages"], order["scripts"]).namespace
    sys.exit(run(link, order, namespace))


def run(link: Link, order: dict[str, Any], namespace: dict[str, Any]) -> int:
    """Initialize, tell the agent, and run until shutdown. Returns the exit status."""
    link.send({"pid": os.getpid()})
    drawn = random.getstate()
    _prefer_me_to_the_agent()
    from . import app

    kernel = app.make(order["connection_file"], order["language"], namespace)
    link.send({"listening": True})
    kernel.iopub_thread.wait_for_subscriber(30.0)
    kernel.io_loop_add_reader(link.fileno(), lambda: _bind(kernel, link, drawn))
    kernel.start()
    return 0


def _bind(kernel: Any, link: Link, drawn: Any) -> None:
    """Called by the loop: the agent's one message has come, or the agent has gone without it."""
    binding = link.receive()
    if binding is None:
        os._exit(0)
    kernel.io_loop_remove_reader(link.fileno())
    answer: dict[str, Any] = {"bound": True}
    try:
        random.setstate(drawn)  # what a preload script has seeded must not depend on our start
        apply(binding)
        kernel.bound()
    except Exception as error:
        answer = {"bound": False, "error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(OSError):
        link.send(answer)
    link.close()


def apply(binding: dict[str, Any]) -> None:
    """Set env, folder and time zone of this process. Raises OSError when the folder cannot be entered."""
    os.environ.update(binding["env"])
    if binding["timezone"]:
        os.environ["TZ"] = binding["timezone"]
    if "TZ" in os.environ:
        time.tzset()
    if binding["cwd"]:
        os.chdir(binding["cwd"])
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None and "MPLBACKEND" in binding["env"]:
        matplotlib.rcParams["backend"] = binding["env"]["MPLBACKEND"]


def _prefer_me_to_the_agent() -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
