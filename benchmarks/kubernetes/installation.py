"""What is measured: an operator and a gateway as they are, real pods or fake ones, and a warm pool."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec

from benchmarks.kubernetes.fake_nodes import SELECTOR, TOLERATION
from benchmarks.kubernetes.load import RUNTIME_NAME, Clients
from benchmarks.kubernetes.meters import Samples, samples
from benchmarks.kubernetes.processes import Process
from benchmarks.kubernetes.stubs import SECOND_BIND, SERVING
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.resources.kinds import POD, RUNTIME, SANDBOX, WARMPOD, WARMPOOL, Kind
from llmsafespace_kube.resources.kubernetes import AnyObject
from llmsafespace_kube.resources.names import NAMESPACE_LABEL
from llmsafespace_kube.resources.settings import Settings

_POOL = "bench"
_LABELS = {NAMESPACE_LABEL: "true"}
_NAMESPACE = Kind("", "v1", "Namespace", "namespaces", AnyObject, namespaced=False)
_END_LIMIT = 600.0
_PAUSE = 1.0


class Installation:
    """Everything of one run, in namespaces of its own."""

    operator: Process
    gateway: Process
    clients: Clients
    _stubs: Process

    def __init__(
        self, folder: Path, client: KubeClient, http: aiohttp.ClientSession, image: str | None = None
    ) -> None:
        """`image` None: fake pods, whose agents are stubs."""
        self._image = image
        mark = secrets.token_hex(3)
        self._system, self._sandboxes, self._pools, self._runtime = (
            f"bench-{part}-{mark}" for part in ("system", "sandboxes", "pools", "runtime")
        )
        self._folder = folder
        self._client = client
        self._http = http
        self._processes: list[Process] = []

    async def start(self) -> None:
        """Make the objects and start the processes; returns when all of them serve."""
        for key in ("key", "egress-key"):
            (self._folder / key).write_text(secrets.token_hex(32))
        await self._objects()
        ports = {"operator": _free_port(), "gateway": _free_port()}
        settings = self._folder / "settings.json"
        settings.write_bytes(msgspec.json.encode(self._settings(ports)))
        if self._image is None:
            stubs = ("benchmarks.kubernetes.stubs", str(self._folder / "key"), self._sandboxes, self._pools)
            self._stubs = self._process(0, *stubs)
            await self._stubs.said(SERVING)
        self.operator = self._process(ports["operator"], "llmsafespace_operator", "--config", str(settings))
        await self.operator.ready()
        await self._start_gateway(ports["gateway"], settings)

    async def _start_gateway(self, port: int, settings: Path) -> None:
        config = self._folder / "gateway.json"
        values = {"warm_pools": [], "rate_limit": 1e6, "rate_burst": 1_000_000}
        config.write_text(json.dumps({"GatewayApp": values}))
        self.gateway = self._process(
            port,
            *("llmsafespace_gateway", "--port", str(port), "--data-dir", str(self._folder / "gateway")),
            *("--config", str(config), "--backend", "kubernetes", "--kubernetes-settings", str(settings)),
        )
        await self.gateway.ready()
        key = re.search(r"lsp_\w+", self.gateway.output())
        if key is None:
            raise RuntimeError("the gateway printed no admin key")
        self.clients = Clients(self.gateway.url, key[0], self._http)

    def _process(self, port: int, *command: str) -> Process:
        made = Process(self._folder, self._http, port, *command)
        self._processes.append(made)
        return made

    def _settings(self, ports: dict[str, int]) -> Settings:
        return Settings(
            system_namespace=self._system,
            sandbox_namespaces={self._sandboxes: "default"},
            pool_namespaces=[self._pools],
            key_file=str(self._folder / "key"),
            egress_key_file=str(self._folder / "egress-key"),
            gateway_url=f"http://127.0.0.1:{ports['gateway']}",
            http_port=ports["operator"],
            pod_node_selector=SELECTOR if self._image is None else {},
            pod_tolerations=[TOLERATION] if self._image is None else [],
        )

    async def _objects(self) -> None:
        namespaces = {self._system: {}, self._sandboxes: _LABELS, self._pools: _LABELS}
        for name, labels in namespaces.items():
            await self._client.create(_NAMESPACE, {"metadata": {"name": name, "labels": labels}})
        language, version = RUNTIME_NAME.split(":")
        spec = {"image": self._image or "localhost/nothing:1", "language": language, "version": version}
        await self._client.create(RUNTIME, {"metadata": {"name": self._runtime}, "spec": spec})
        resources = {"cpu": "500m", "memory": "512Mi"}
        pool = {"runtime": RUNTIME_NAME, "minSize": 0, "ttl": 0, "resources": resources}
        await self._client.create(WARMPOOL, {"metadata": {"name": _POOL}, "spec": pool}, self._pools)

    async def resize(self, warm: int, limit: float) -> float:
        """Change the pool; returns the seconds until it is full. Raises RuntimeError."""
        began = time.monotonic()
        await self._client.patch(WARMPOOL, _POOL, {"spec": {"minSize": warm}}, self._pools)
        if left := await self.left_over(warm, 0, limit):
            raise RuntimeError(f"the pool is not full: {left}")
        return time.monotonic() - began

    async def left_over(self, warm: int, sandboxes: int, limit: float) -> str:
        """Wait until so many pods are warm and Sandboxes there; says what is not so at the limit."""
        deadline = time.monotonic() + limit
        while (found := await self._counts()) != (warm, sandboxes, sandboxes, warm + sandboxes):
            if time.monotonic() > deadline:
                return "{} warm, {} claimed, {} Sandboxes, {} pods".format(*found)
            await asyncio.sleep(_PAUSE)
        return ""

    async def _counts(self) -> tuple[int, int, int, int]:
        """Warm pods that can be claimed, claimed ones (or cold), Sandboxes, and pods."""
        warm_pods, _ = await self._client.list(WARMPOD, self._pools)
        sandboxes, _ = await self._client.list(SANDBOX, self._sandboxes)
        cold, _ = await self._client.list(POD, self._sandboxes)
        pods, _ = await self._client.list(POD, self._pools)
        claimed = sum(each.spec.claim is not None for each in warm_pods) + len(cold)
        ready = sum(each.spec.claim is None and each.status.phase == "Ready" for each in warm_pods)
        return ready, claimed, len(sandboxes), len(pods) + len(cold)

    def second_binds(self) -> int:
        """How often a pod was bound by somebody else than the first: it was handed out twice."""
        return self._stubs.output().count(SECOND_BIND)

    async def server_metrics(self) -> Samples:
        """The API server's counters."""
        command = ("kubectl", "get", "--raw", "/metrics")
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        text, _ = await process.communicate()
        return samples(text.decode())

    async def stop(self) -> None:
        """Remove the objects while the operator can, then end the processes."""
        await self._client.delete(WARMPOOL, _POOL, self._pools)
        await self._client.delete(RUNTIME, self._runtime)
        for namespace in (self._sandboxes, self._pools, self._system):
            await self._client.delete(_NAMESPACE, namespace)
        deadline = time.monotonic() + _END_LIMIT
        while time.monotonic() < deadline:
            if not await self._left():
                break
            await asyncio.sleep(_PAUSE)
        for process in reversed(self._processes):
            await process.stop()

    async def _left(self) -> bool:
        namespaces, _ = await self._client.list(_NAMESPACE)
        ours = {self._sandboxes, self._pools, self._system}
        return any(each.metadata.name in ours for each in namespaces)


@contextlib.asynccontextmanager
async def installed(
    folder: Path, client: KubeClient, http: aiohttp.ClientSession, image: str | None = None
) -> AsyncIterator[Installation]:
    """An installation that serves, and of which nothing is left afterwards."""
    folder.mkdir()
    made = Installation(folder, client, http, image)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
