"""The bridge's process as the provisioner holds it: requests in, events out, state in memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from llmsafespace.errors import SandboxError


class BridgeProcess:
    """A running bridge. Its methods may be called from any thread or event loop.

    `exit_code` is None while a kernel is there: not before it is ready, nor after it died, was shut down or
    its sandbox ended.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.exit_code: int | None = 0
        self._owner = os.getpid()
        self.sandbox_id: str | None = None
        self.connection = request["connection"]
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._ready = False
        self._calls: dict[int, Future[None]] = {}
        self._numbers = itertools.count(1)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmsafespace.jupyter.bridge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the application's terminal is not for its kernels
            text=True,
        )
        self._write(request)
        self._reader = threading.Thread(target=self._listen, name="llmsafespace-bridge", daemon=True)
        self._reader.start()

    def wait_ready(self) -> None:
        """Return when the kernel is there. Raises SandboxError saying why it is not."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._failure is not None)
            if self._failure is not None:
                raise SandboxError(self._failure)

    @property
    def _ours(self) -> bool:
        """False in a process that was forked from the one that started it: whoever reads is not there."""
        return self._owner == os.getpid()

    @property
    def running(self) -> bool:
        """True while the process runs, whatever its kernel does."""
        return self._process.poll() is None

    def call(self, operation: str, timeout: float) -> None:
        """Carry out an operation. Raises SandboxError when it fails, or after `timeout` seconds."""
        if not self._ours:
            raise SandboxError("the kernel belongs to the process that this one was forked from")
        future: Future[None] = Future()
        with self._changed:
            number = next(self._numbers)
            self._calls[number] = future
        self._write({"id": number, "op": operation})
        if not self.running:
            raise SandboxError("the bridge to the sandbox has ended")
        try:
            future.result(timeout)
        except FutureTimeout as error:
            raise SandboxError(f"{operation}: no answer within {timeout:g} s") from error

    def restart(self, timeout: float) -> None:
        """A fresh kernel in the same sandbox. Raises SandboxError."""
        self.call("restart", timeout)
        with self._changed:
            self.exit_code = None

    def wait_stopped(self, timeout: float) -> bool:
        """True when there is no kernel any more, within `timeout` seconds."""
        if not self._ours:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self.exit_code is not None, timeout)

    def mark_stopped(self) -> None:
        """The application considers its kernel ended, though the sandbox may live on for a restart."""
        if self._ours:
            self._set_exit(0)
        else:
            self.exit_code = 0

    def end(self, *, leave: bool = False, timeout: float = 20.0) -> None:
        """End the process, and the sandbox with it unless `leave`. Returns when it has ended."""
        if not self._ours:
            return
        with contextlib.suppress(SandboxError):
            # Its standard input ends too, but not where a forked process has the other end as well.
            self.call("leave" if leave else "terminate", timeout)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _write(self, document: dict[str, Any]) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(document) + "\n")
                self._process.stdin.flush()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))
        code = self._process.wait()
        with self._changed:
            calls, self._calls = self._calls, {}
            self._failure = self._failure or f"the bridge to the sandbox ended with status {code}"
        for future in calls.values():
            if not future.done():
                future.set_exception(SandboxError("the bridge to the sandbox has ended"))
        self._set_exit(code)

    def _take(self, document: dict[str, Any]) -> None:
        if "sandbox_id" in document:
            self.sandbox_id = document["sandbox_id"]
        event = document.get("event")
        if event == "ready":
            with self._changed:
                self._ready, self.exit_code = True, None
                self._changed.notify_all()
        elif event == "failed":
            with self._changed:
                self._failure = str(document["error"])
                self._changed.notify_all()
        elif event == "stopped":
            self._set_exit(0)
        elif event in ("dead", "ended"):
            self._set_exit(1)
        else:
            self._answered(document)

    def _answered(self, document: dict[str, Any]) -> None:
        future = self._calls.pop(int(document["id"]), None)
        if future is None or future.done():
            return
        if "error" in document:
            future.set_exception(SandboxError(str(document["error"])))
        else:
            future.set_result(None)

    def _set_exit(self, code: int) -> None:
        with self._changed:
            if self.exit_code is None:
                self.exit_code = code
            self._changed.notify_all()
