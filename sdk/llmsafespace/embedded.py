"""A private gateway for this process: on a unix socket, without keys, gone when the process is."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path

from llmsafespace.errors import GatewayUnavailable
from llmsafespace.settings import Endpoint

_PREFIX = "llmsafespace-"
_LOCK = "lock"
_STOP_TIMEOUT = 20.0  # seconds for the private gateway to end its sandboxes


class EmbeddedGateway:
    """A gateway process that lives as long as this one: its standard input is a pipe from us."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Short, since a unix socket's path may have some 100 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held by this process and by the gateway: whoever gets the lock knows that both are dead.
        self._lock = os.open(self.folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.folder / "new").rename(self.folder / _LOCK)
        self.socket = str(self.folder / "gateway.sock")
        self._told: deque[str] = deque(maxlen=20)
        arguments = ("--socket", self.socket, "--embedded", "--data-dir", str(self.folder / "data"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmsafespace_gateway", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _shows_progress() else subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for this process; it tells the gateway itself
            pass_fds=(self._lock,),
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def wait_ready(self) -> None:
        """Return when it serves. Preparing a runtime for the first time may take minutes.

        Raises GatewayUnavailable with its last words when it ends instead.
        """
        for line in self._process.stdout or ():
            with contextlib.suppress(ValueError):
                if json.loads(line).get("ready"):
                    threading.Thread(target=self._drain, daemon=True).start()
                    return
        code = self._process.wait()
        raise GatewayUnavailable(
            f"the private gateway did not start (exit status {code}): {' '.join(self._told) or 'see above'}"
        )

    @property
    def alive(self) -> bool:
        """True while the process runs, in the process that started it."""
        return self.pid == os.getpid() and self._process.poll() is None

    def stop(self) -> None:
        """Close its standard input, wait until it has ended its sandboxes, and remove its folder."""
        if self.pid != os.getpid():
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT)
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def _listen(self) -> None:
        """Keep the last lines of its log, and never let the pipe fill."""
        for line in self._process.stderr or ():
            self._told.append(line.strip())

    def _drain(self) -> None:
        for _ in self._process.stdout or ():
            pass


def sweep() -> None:
    """Remove the folders of this user's private gateways whose processes were killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            if lock.stat().st_uid != os.getuid():
                continue
            handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def _shows_progress() -> bool:
    try:
        return sys.stderr.isatty() and sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


_lock = threading.Lock()
_gateway: EmbeddedGateway | None = None


def endpoint() -> Endpoint:
    """The private gateway's endpoint; starts it on first use. Raises GatewayUnavailable."""
    global _gateway
    with _lock:
        if _gateway is None or not _gateway.alive:
            stop()
            sweep()
            gateway = EmbeddedGateway()
            atexit.register(gateway.stop)
            try:
                gateway.wait_ready()
            except BaseException:
                gateway.stop()
                raise
            _gateway = gateway
        return Endpoint("http://localhost", None, _gateway.socket)


def stop() -> None:
    """End the private gateway and its sandboxes, if there is one. The next sandbox starts a new one."""
    global _gateway
    gateway, _gateway = _gateway, None
    if gateway is not None:
        atexit.unregister(gateway.stop)
        gateway.stop()
