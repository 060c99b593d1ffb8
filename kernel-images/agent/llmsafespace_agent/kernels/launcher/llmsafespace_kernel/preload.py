"""What a template does ahead of need: import, run scripts, and see whether it may still be forked."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import threading
import traceback
from typing import Any

from .randomness import Randomness


class Preloaded:
    """The outcome of preloading: what later children need of it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.namespace: dict[str, Any] = {}
        self.unforkable: str | None = None
        self.randomness = Randomness()


def preload(packages: list[str], scripts: list[dict[str, str]]) -> Preloaded:
    """Import `packages`, run `scripts`; what fails is a problem, not an error.

    The names that scripts define become variables of the kernel.
    """
    outcome = Preloaded()
    sockets = _sockets()
    for package in packages:
        _import(package, outcome)
    if any("numpy" in script["content"] for script in scripts):
        with contextlib.suppress(ImportError):  # its state is to be seen before a script seeds it
            importlib.import_module("numpy.random")
    outcome.randomness.record()
    threads = _native_threads()
    for script in scripts:
        _run(script, outcome)
    outcome.randomness.settle()
    outcome.unforkable = _unforkable(threads, sockets)
    return outcome


def _import(package: str, outcome: Preloaded) -> None:
    try:
        with _silence():
            importlib.import_module(package)
    except BaseException as error:
        outcome.problems.append(f"preload package {package}: {_words(error)}")


def _run(script: dict[str, str], outcome: Preloaded) -> None:
    name = script["name"]
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        with _silence():
            exec(compile(script["content"], f"<preload script {name}>", "exec"), namespace)  # noqa: S102
    except BaseException as error:
        outcome.problems.append(f"preload script {name}: {_words(error)}")
        return
    outcome.namespace.update({key: value for key, value in namespace.items() if not key.startswith("__")})


def _words(error: BaseException) -> str:
    return traceback.format_exception_only(type(error), error)[-1].strip()


@contextlib.contextmanager
def _silence() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _unforkable(threads: int, sockets: set[str]) -> str | None:
    """Why this process must not be forked. Native threads of imports (BLAS pools) are made for a fork."""
    main = threading.main_thread()
    python_threads = [thread.name for thread in threading.enumerate() if thread is not main]
    if python_threads:
        return f"preloading left threads behind ({', '.join(python_threads)}): kernels start by exec"
    if _native_threads() > threads:
        return "preload scripts left native threads behind: kernels start by exec"
    if _sockets() - sockets:
        return "preloading left open sockets behind: kernels start by exec"
    return None


def _native_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _sockets() -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{descriptor}")
                if target.startswith("socket:"):
                    found.add(target)
    return found
