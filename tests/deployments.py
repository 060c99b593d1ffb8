"""The gateway that tests run against: one that they start themselves, or any other.

`pytest tests/security tests/faults` starts gateways of its own, each a local process (`Gateway` in
tests/conftest.py). To try another gateway, whatever its backend:

    pytest tests/security tests/faults --gateway URL --key KEY [--data-dir PATH]
    pytest tests/security tests/faults --deployment package.module:function

`--key` is an admin's key of the tenant `default`: the tests make users of other tenants with it. Start that
gateway with a high `rate_limit` (10,000), or the tests wait out each 429, which takes long.
`--data-dir` names the gateway's data folder where it can be read from here: then the tests that look for
secrets on its disk run too.

A test that needs more than the URL (the log, the process, a restart) is skipped with the reason when the
gateway cannot give it: `Remote` raises the skip where the test asks for it. `--deployment` names a function
without arguments that returns a started `Deployment` which can give more: each backend may bring its own.
"""

from __future__ import annotations

import importlib
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest


class Deployment(Protocol):
    """One gateway, wherever it runs. Members that a deployment does not have raise pytest's Skipped.

    `start()` after `kill()` or `stop()` is the same gateway again: same address, keys, data and sandboxes.
    """

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for tests that write bytes that no HTTP client would."""

    @property
    def admin_key(self) -> str:
        """A key of an admin of the tenant `default`."""

    @property
    def data_dir(self) -> Path:
        """The gateway's data folder, on this machine."""

    @property
    def output(self) -> list[str]:
        """The lines of its log since its first start."""

    @property
    def pid(self) -> int:
        """The gateway's process on this machine."""

    def start(self) -> None:
        """Start it, and wait until it is ready."""

    def serves(self) -> bool:
        """Whether it is ready."""

    def kill(self) -> None:
        """End it without a chance to clean up."""

    def stop(self) -> int:
        """Ask it to end, and wait; its exit status."""

    def revoke(self, key_id: str) -> None:
        """Revoke a key behind the serving process' back where that is possible, else through the API."""

    def end_all(self) -> None:
        """End every sandbox and the deployment itself."""


class Remote:
    """A gateway of which only the address and a key are known, and perhaps its data folder."""

    def __init__(self, url: str, admin_key: str, data_dir: Path | None = None) -> None:
        self.url = url.rstrip("/")
        self.admin_key = admin_key
        self._data_dir = data_dir
        self._parts = urllib.parse.urlsplit(self.url)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; raw bytes go to plain HTTP only."""
        if self._parts.scheme != "http" or self._parts.path:
            pytest.skip("needs a gateway on plain HTTP at the root of its URL")
        return self._parts.hostname or "", self._parts.port or 80

    @property
    def port(self) -> int:
        """The port of its URL."""
        return self._parts.port or (443 if self._parts.scheme == "https" else 80)

    @property
    def data_dir(self) -> Path:
        """Its data folder, where --data-dir names it."""
        if self._data_dir is None:
            pytest.skip("needs the gateway's data folder on this machine (--data-dir)")
        return self._data_dir

    @property
    def output(self) -> list[str]:
        """Nobody reads its log."""
        _cannot("the gateway's log")

    @property
    def pid(self) -> int:
        """Its process is somewhere else."""
        _cannot("the gateway's process")

    def serves(self) -> bool:
        """Whether it is ready."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def start(self) -> None:
        """Nobody here can."""
        _cannot("to start the gateway")

    def kill(self) -> None:
        """Nobody here can."""
        _cannot("to kill the gateway")

    def stop(self) -> int:
        """Nobody here can."""
        _cannot("to stop the gateway")

    def revoke(self, key_id: str) -> None:
        """Through the API, as its store is out of reach."""
        request = urllib.request.Request(
            f"{self.url}/api/v1/user/apikeys/{key_id}",
            headers={"Authorization": f"Bearer {self.admin_key}"},
            method="DELETE",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 204

    def end_all(self) -> None:
        """It is not ours to end."""


def _cannot(what: str) -> NoReturn:
    pytest.skip(f"needs {what}: run without --gateway, or with a --deployment that has it")


def add_options(parser: Any) -> None:
    """The options of the command line; see the top of this file."""
    group = parser.getgroup("gateway", "the gateway that tests/security and tests/faults run against")
    group.addoption("--gateway", metavar="URL", help="a gateway that runs already")
    group.addoption("--key", metavar="KEY", help="an admin's key of its tenant `default`")
    group.addoption("--data-dir", metavar="PATH", type=Path, help="its data folder, where it is here")
    group.addoption("--deployment", metavar="MODULE:FUNCTION", help="what starts and kills the gateway")


def chosen(config: Any) -> Callable[[], Any] | None:
    """What gives the deployment that the command line names; None: tests start gateways of their own."""
    url, key, named = (config.getoption(name) for name in ("--gateway", "--key", "--deployment"))
    if named:
        module, _, function = named.partition(":")
        found: Callable[[], Any] = getattr(importlib.import_module(module), function)
        return found
    if url is None:
        return None
    if not key:
        raise pytest.UsageError("--gateway needs --key, an admin's key of the tenant `default`")
    data_dir = config.getoption("--data-dir")
    return lambda: Remote(url, key, data_dir)
