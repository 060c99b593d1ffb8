"""A private gateway for this process: on a unix socket, without keys, gone when the process is.

Its folder holds its data, its socket and a lock, which this process and the gateway share: whoever gets the
lock knows that both are dead. Nothing that lives is left behind, whoever is killed:

* the gateway: it is started again on the same data and socket, adopts its sandboxes, and clients go on;
* this process: the gateway's standard input ends, and it ends its sandboxes;
* both: the sandboxes live on until the next private gateway of this user is started. It finds the folder
  (`sweep`), has a gateway end what is in it, and only then removes it.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from llmsafespace.errors import GatewayUnavailable
from llmsafespace.settings import Endpoint

log = logging.getLogger("llmsafespace")
_PREFIX = "llmsafespace-"
_LOCK = "lock"
_STOP_TIMEOUT = 20.0  # seconds for the private gateway to end its sandboxes
_END_TIMEOUT = 60.0  # seconds for another one to end those that a killed one left
_LIVED = 10.0  # seconds after which a gateway that ends is not one that cannot start
_MOST_RESTARTS = 3  # in a row, of gateways that did not serve for so long
_RESTART_PAUSE = 1.0  # seconds, times the number of restarts in a row: what fails may be short of something


class EmbeddedGateway:
    """A gateway process that lives as long as this one: its standard input is a pipe from us."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Short, since a unix socket's path may have some 100 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self.folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.folder / "new").rename(self.folder / _LOCK)
        self.socket = str(self.folder / "gateway.sock")
        self._told: deque[str] = deque(maxlen=20)
        self._changing = threading.Lock()  # one thread at a time starts or stops the process
        self._stopped = self._gone = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            command(self.folder, self.socket),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _shows_progress() else subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for this process; it tells the gateway itself
            pass_fds=(self._lock,),
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()

    def wait_ready(self) -> None:
        """Return when it serves. Preparing a runtime for the first time may take minutes.

        Raises GatewayUnavailable with its last words when it ends instead.
        """
        process = self._process
        if _serves(process):
            threading.Thread(target=self._keep, args=(process,), daemon=True).start()
            return
        raise GatewayUnavailable(f"the private gateway did not start {self._why(process.wait())}")

    def _why(self, code: int) -> str:
        return f"(exit status {code}): {' '.join(self._told) or 'see above'}"

    @property
    def alive(self) -> bool:
        """True while there is a process, or another one is on its way, in the process that started it."""
        return self.pid == os.getpid() and not self._stopped

    def stop(self) -> None:
        """Close its standard input, wait until it has ended its sandboxes, and remove its folder."""
        if self.pid != os.getpid():
            return
        self._stopped = True
        with self._changing:
            if self._gone:
                return
            self._gone = True
            self._end_process()
            if end_left(self.folder, self._lock):
                shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.close(self._lock)

    def _end_process(self) -> None:
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        for end in (process.terminate, process.kill, lambda: None):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
                return
            end()

    def _keep(self, process: subprocess.Popen[str]) -> None:
        """Wait for its end; when nobody asked for that, start others in its place until one serves."""
        began: float | None = time.monotonic()  # to serve; None: it never did
        restarts = 0
        while True:
            for _ in process.stdout or ():
                pass
            code = process.wait()
            lived = began is not None and time.monotonic() - began > _LIVED
            restarts = 1 if lived else restarts + 1
            if restarts > _MOST_RESTARTS and not self._stopped:
                log.error("the private gateway ends again and again %s; it is given up", self._why(code))
                self._stopped = True
            if self._stopped:
                return
            if restarts > 1:
                time.sleep(_RESTART_PAUSE * (restarts - 1))
            with self._changing:
                if self._stopped or self._process is not process:
                    return
                log.warning("the private gateway ended with status %s; it is started again", code)
                try:
                    self._start()
                except OSError as error:  # no memory, or no further process
                    log.warning("the private gateway could not be started: %s", error)
                process = self._process
            began = time.monotonic() if _serves(process) else None

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Keep the last lines of its log, and never let the pipe fill."""
        for line in process.stderr or ():
            self._told.append(line.strip())


def _serves(process: subprocess.Popen[str]) -> bool:
    """Wait until a gateway is ready; False when it ends instead."""
    for line in process.stdout or ():
        with contextlib.suppress(ValueError):
            if json.loads(line).get("ready"):
                return True
    return False


def command(folder: Path, socket: str) -> list[str]:
    """The command line of a private gateway with its data in this folder."""
    options = ("--socket", socket, "--embedded", "--data-dir", str(folder / "data"))
    return [sys.executable, "-m", "llmsafespace_gateway", *options]


def end_left(folder: Path, lock: int) -> bool:
    """End the sandboxes of a killed gateway by another one on its data; True when none is left.

    It takes the living in, and is told to stop as soon as it serves: then it ends them. `lock` is the
    descriptor of the folder's lock, which it shares, so that nobody removes the folder while it works.
    """
    if not has_sandboxes(folder):
        return True
    process = subprocess.Popen(
        command(folder, str(folder / "end.sock")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(lock,),
        text=True,
    )
    watchdog = threading.Timer(_END_TIMEOUT, process.kill)
    watchdog.start()
    try:
        for line in process.stdout or ():
            if '"ready"' in line:
                break
        process.communicate()  # closes its standard input, and waits
    finally:
        watchdog.cancel()
    if has_sandboxes(folder):
        log.warning(
            "sandboxes of a killed private gateway could not be ended (exit status %s): see %s",
            process.returncode,
            folder,
        )
        return False
    return True


def has_sandboxes(folder: Path) -> bool:
    """True when there are sandboxes in a private gateway's data; each has a folder until it has ended."""
    return any((folder / "data" / "sandboxes").glob("*"))


def sweep() -> None:
    """End the sandboxes and remove the folders of this user's private gateways that were killed."""
    work = []
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):
            if lock.stat().st_uid == os.getuid():
                work.append(threading.Thread(target=_sweep, args=(lock,), daemon=True))
                work[-1].start()
    for thread in work:
        thread.join()


def _sweep(lock: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and end_left(lock.parent, handle):
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


def _forked() -> None:
    """A forked process has a lock of its own: the thread that held the old one may not be there."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


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
