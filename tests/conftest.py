"""Real gateways for tests: each is a process of its own on a loopback port with a data folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import deployments

START_LIMIT = 600.0  # seconds; the first start on a machine prepares a runtime
HELD = 0.1  # seconds of processor time for which nothing may hold the shared gateway's event loop
_SERVES_JSON = r'"message":\s*"serving".*"http://[^:]+:(\d+)"'  # one whose sandboxes are pods logs JSON only
POOL = {"name": "default", "runtime": "python", "minSize": 2, "maxSize": 4}


class Gateway:
    """A gateway process. `start()` after `kill()` is the same gateway again: same port, same data."""

    def __init__(self, data_dir: Path, *options: str, **settings: object) -> None:
        self.data_dir = data_dir
        self.port = 0
        self.admin_key = ""
        self.output: list[str] = []
        self._options = options
        self.prefix: tuple[str, ...] = ()  # a program that starts it
        self._process: subprocess.Popen[str] | None = None
        config = {"warm_pools": [POOL], "rate_limit": 10_000.0, "rate_burst": 20_000, **settings}
        self._config = data_dir / "config.json"
        self._config.write_text(json.dumps({"GatewayApp": config}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it is ready to serve."""
        command = [*self.prefix, sys.executable, "-m", "llmsafespace_gateway", "--port", str(self.port)]
        command += ["--data-dir", str(self.data_dir), "--config", str(self._config), *self._options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.data_dir
        )
        serving = threading.Event()
        threading.Thread(target=self._read, args=(self._process, serving), daemon=True).start()
        deadline = time.monotonic() + START_LIMIT
        while not serving.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the gateway did not start:\n" + "".join(self.output[-60:]))
        while not self.serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the gateway is not ready:\n" + "".join(self.output[-60:]))
            time.sleep(0.05)

    def _read(self, process: subprocess.Popen[str], serving: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line)
            found = re.search(r"serves on http://[^:]+:(\d+)", line) or re.search(_SERVES_JSON, line)
            if found:
                self.port = int(found[1])
            if found := re.search(r"(lsp_\w+)", line):
                self.admin_key = self.admin_key or found[1]
            if line.startswith("Try it") or re.search(_SERVES_JSON, line):
                serving.set()

    def serves(self) -> bool:
        """Whether it is ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        return self._process.returncode

    def key(self, user: str, role: str = "developer", tenant: str = "default", *options: str) -> str:
        """A new API key, made with the command line while the gateway runs."""
        command = [sys.executable, "-m", "llmsafespace_gateway", "keys", "create"]
        command += ["--data-dir", str(self.data_dir), "--user", user, "--role", role, "--tenant", tenant]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def revoke(self, key_id: str) -> None:
        """Revoke a key with the command line while the gateway runs."""
        command = [sys.executable, "-m", "llmsafespace_gateway", "keys", "revoke", key_id]
        command += ["--data-dir", str(self.data_dir)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)

    def _call(self, key: str, method: str, path: str) -> dict[str, list[dict[str, str]]]:
        headers = {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                body = answer.read()
        except OSError:
            return {}
        return json.loads(body) if body else {}

    def end_all(self) -> None:
        """Delete every sandbox that is left, as an admin of its tenant, then stop."""
        with contextlib.closing(sqlite3.connect(self.data_dir / "db.sqlite")) as store:
            left = store.execute("SELECT DISTINCT tenant FROM sandboxes WHERE state != 'ended'").fetchall()
        for (tenant,) in left:
            key = self.key("cleaner", "admin", tenant)
            for sandbox in self._call(key, "GET", "/api/v1/sandboxes?status=running").get("items", []):
                self._call(key, "DELETE", f"/api/v1/sandboxes/{sandbox['id']}")
        self.stop()


def make_gateway(folder: Path, *options: str, **settings: object) -> Gateway:
    """A started gateway in `folder`; `settings` are GatewayApp's."""
    gateway = Gateway(folder, *options, **settings)
    gateway.start()
    return gateway


@pytest.fixture(scope="session")
def data_root() -> Iterator[Path]:
    """A short folder: unix socket paths hold at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lsp-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that name another gateway; see deployments.py."""
    deployments.add_options(parser)


@pytest.fixture(scope="session")
def gateway(data_root: Path, pytestconfig: pytest.Config) -> Iterator[Any]:
    """The gateway that most tests share: a local one, or the one that the command line names."""
    if (make := deployments.chosen(pytestconfig)) is not None:
        named = make()
        yield named
        named.end_all()
        return
    folder = data_root / "shared"
    folder.mkdir()
    made = make_gateway(folder, slow_callback=HELD)
    yield made
    made.end_all()
    unheard = [line for line in made.output if "exception was never retrieved" in line]
    assert not unheard, "nobody took a task's exception:\n" + "".join(unheard[:20])
    held = [line for line in made.output if '"the event loop was held"' in line]
    assert not held, "requests held the gateway's event loop:\n" + "".join(held[:20])


@pytest.fixture
def own_gateway(data_root: Path) -> Iterator[Gateway]:
    """A gateway of the test's own, which it may kill and start again."""
    folder = Path(tempfile.mkdtemp(dir=data_root))
    made = make_gateway(folder)
    yield made
    made.end_all()
