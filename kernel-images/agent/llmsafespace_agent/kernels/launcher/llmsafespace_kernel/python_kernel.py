"""The Python kernel: ipykernel's, with an environment per cell."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from traitlets import Type

from .answering import Answering
from .interrupts import in_main_thread
from .shell import Shell


class PythonKernel(Answering, IPythonKernel):
    """`metadata.llmsafespace.env` of an execute_request is set in `os.environ` while that cell runs.

    SIGINT interrupts a cell, and nothing else: an interrupt that comes while the request is still being
    prepared waits for the cell. Raised earlier it would end the request without any reply.
    """

    shell_class = Type(Shell)
    _interrupted_early = False

    def pre_handler_hook(self) -> None:
        """Before each request on the shell channel."""
        self._interrupted_early = False
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._note_interrupt)

    def _note_interrupt(self, number: int, frame: Any) -> None:
        self._interrupted_early = True

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """SIGINT raises KeyboardInterrupt inside, one that has come before does so at once."""
        if not in_main_thread():
            yield
            return
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._interrupted_early:
                raise KeyboardInterrupt
            yield
        finally:
            signal.signal(signal.SIGINT, self._note_interrupt)

    def _cancel_on_sigint(self, future: Any) -> Any:
        return self.shell.interruption.wakes(future)

    async def do_execute(
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: Any = None,
        allow_stdin: bool = False,
        *,
        cell_meta: Any = None,
        cell_id: Any = None,
    ) -> Any:
        _set_breakpoint_hook(allow_stdin)
        try:
            with cell_environment(cell_env(cell_meta)), self._interruptible():
                return await super().do_execute(
                    code,
                    silent,
                    store_history,
                    user_expressions,
                    allow_stdin,
                    cell_meta=cell_meta,
                    cell_id=cell_id,
                )
        except KeyboardInterrupt:  # before or after the code itself, where IPython does not catch it
            return {
                "status": "error",
                "ename": "KeyboardInterrupt",
                "evalue": "",
                "traceback": ["KeyboardInterrupt"],
                "execution_count": self.execution_count,
                "user_expressions": {},
                "payload": [],
            }

    async def poll_stopped_queue(self) -> None:
        """Only a debugger stops threads."""
        if hasattr(self, "debugger"):
            await super().poll_stopped_queue()


def _set_breakpoint_hook(allow_stdin: bool) -> None:
    """Without anybody to ask, a debugger could only fail. What the user has set stays."""
    if sys.breakpointhook in (sys.__breakpointhook__, _go_on):
        sys.breakpointhook = sys.__breakpointhook__ if allow_stdin else _go_on


def _go_on(*_arguments: Any, **_options: Any) -> None:
    print("breakpoint(): the code goes on, as nobody can be asked for commands here", file=sys.stderr)


def cell_env(metadata: Any) -> dict[str, str]:
    """The environment in an execute_request's metadata; whatever is not text for text is left out."""
    ours = metadata.get("llmsafespace") if isinstance(metadata, dict) else None
    env = ours.get("env") if isinstance(ours, dict) else None
    if not isinstance(env, dict):
        return {}
    return {key: value for key, value in env.items() if _is_variable(key, value)}


def _is_variable(key: Any, value: Any) -> bool:
    if not isinstance(key, str) or not isinstance(value, str):
        return False
    return bool(key) and "=" not in key and "\0" not in key + value


@contextlib.contextmanager
def cell_environment(env: dict[str, str]) -> Iterator[None]:
    """`env` is in `os.environ` inside; afterwards the variables are what they were before."""
    if not env:
        yield
        return
    before = {key: os.environ.get(key) for key in env}
    os.environ.update(env)
    if "TZ" in env:
        time.tzset()
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        if "TZ" in env:
            time.tzset()
