"""An installation for tests: operator and gateway run on this machine, sandboxes in the cluster."""

from __future__ import annotations

import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_kube.resources.settings import Settings
from tests.cluster.support import Kubectl, Namespaces, eventually
from tests.conftest import Gateway

EGRESS_PORT = 3128


class Operator:
    """An operator process. `start()` after `kill()` is the same operator again."""

    def __init__(self, settings: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.output: list[str] = []
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until its caches are full."""
        command = [sys.executable, "-m", "llmsafespace_operator", "--config", str(self._settings)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._process = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

        def ready() -> bool:
            if process.poll() is not None:
                raise ProcessEnded(f"the operator ended with {process.returncode}:\n{self.tail()}")
            return self.get("/readyz") is not None

        eventually(ready, what="a ready operator")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line)
            print("operator:", line, end="")  # pytest shows it where a test fails

    def tail(self) -> str:
        """The last of what it printed."""
        return "".join(self.output[-80:])

    def get(self, path: str) -> str | None:
        """The body at `path` of its HTTP port, None unless it answers 200."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, OSError):
            return None

    @property
    def leads(self) -> bool:
        """Whether it has the Lease, as its metrics tell."""
        return bool(re.search(r"leader_election_master_status\{.*\} 1", self.get("/metrics") or ""))

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode


class ProcessEnded(Exception):
    """A process ended that should go on; the message has its last output."""


@dataclass
class Installation:
    """Namespaces, keys and settings; as many operators and gateways as a test wants. See `installing`."""

    folder: Path
    host: str  # this machine, as pods see it
    system: str
    sandboxes: str
    pools: str
    settings: Settings
    operators: list[Operator] = field(default_factory=list)
    gateways: list[Gateway] = field(default_factory=list)

    def operator(self, **changes: Any) -> Operator:
        """A started operator; `changes` to the settings are its own."""
        port = free_port()
        path = self._write(f"operator-{port}.json", http_port=port, webhook_port=free_port(), **changes)
        made = Operator(path, port)
        self.operators.append(made)
        made.start()
        return made

    def gateway(self, *options: str, folder: str = "gateway", **settings: object) -> Gateway:
        """A started gateway whose sandboxes are pods; the arguments are those of tests.conftest.Gateway.

        All gateways of an installation are replicas: they share the first one's store, hence keys, too.
        Those with a `folder` of their own do so, too, if they are given the same `database_url`.
        """
        data = self.folder / folder
        if data.exists():  # one that serves has it to itself
            settings.setdefault("database_url", f"sqlite:///{data}/db.sqlite")
            data = self.folder / f"{folder}-{len(self.gateways)}"
        data.mkdir()
        where = ("--backend", "kubernetes", "--kubernetes-settings", str(self._write("gateway.json")))
        made = Gateway(data, "--ip", "0.0.0.0", *where, *options, **{"warm_pools": [], **settings})
        self.gateways.append(made)
        made.start()
        return made

    def _write(self, name: str, **changes: Any) -> Path:
        path = self.folder / name
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(self.settings, **changes)))
        return path

    def stop(self) -> None:
        """End every process; sandboxes go with their namespaces."""
        for gateway in self.gateways:
            gateway.stop()
        for operator in self.operators:
            operator.stop()


@contextmanager
def installing(folder: Path, kubectl: Kubectl, host: str, **settings: Any) -> Iterator[Installation]:
    """An installation with namespaces of its own, and its `settings`. Nothing is left afterwards."""
    namespaces = Namespaces(kubectl)
    folder.mkdir(parents=True)
    for key in ("key", "egress-key"):
        (folder / key).write_text(secrets.token_hex(32))
    try:
        system = namespaces("system")
        sandboxes = namespaces("sandboxes", sandboxes=True)
        pools = namespaces("pools", sandboxes=True)
        for namespace in (sandboxes, pools):
            kubectl.apply(shut(host), namespace=namespace)
        values: dict[str, Any] = {
            "system_namespace": system,
            "sandbox_namespaces": {sandboxes: "default"},
            "pool_namespaces": [pools],
            "key_file": str(folder / "key"),
            "egress_key_file": str(folder / "egress-key"),
            "gateway_url": f"http://{host}:8080",
            **settings,
        }
        made = Installation(folder, host, system, sandboxes, pools, Settings(**values))
        try:
            yield made
        finally:
            made.stop()
    finally:
        namespaces.remove_all()


def shut(host: str) -> dict[str, Any]:
    """The network policy of sandboxes whose gateway, operator and egress proxy run on this machine."""
    machine = {"ipBlock": {"cidr": f"{host}/32"}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "sandboxes"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [machine]}],
            "egress": [{"to": [machine], "ports": [{"port": EGRESS_PORT, "protocol": "TCP"}]}],
        },
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port: int = server.getsockname()[1]
        return port
