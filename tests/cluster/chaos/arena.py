"""Two operators and three gateways on fake nodes, each on a road of its own that may be bad."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from benchmarks.kubernetes.processes import Process
from benchmarks.kubernetes.stubs import SERVING
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.resources.kinds import LEASE, RUNTIME, WARMPOOL
from tests.cluster.chaos.clients import Clients
from tests.cluster.chaos.road import Ambush, Road
from tests.cluster.chaos.victims import Victim
from tests.cluster.chaos.witness import Witness, wrong_binds
from tests.cluster.faults import Faults
from tests.cluster.support_processes import Installation, free_port

Role = Literal["operator", "gateway"]

OPERATORS, GATEWAYS = 2, 3
POOL = "chaos"
ORPHAN_GRACE = "10"  # seconds
MEMORY = 400 * 2**20  # bytes that no process may need
TAKE_OVER = 18.0  # seconds, more than the Lease holds
_LOOK = 1.0  # seconds between looks at memory
_PAUSE = 0.5


class Arena:
    """The installation, who uses it, and who watches it."""

    def __init__(self, installation: Installation, client: KubeClient, minimum: int, maximum: int) -> None:
        self.victims: dict[Role, list[Victim]] = {"operator": [], "gateway": []}
        self.roads: list[Road] = []
        self.runtime = f"test-chaos-{secrets.token_hex(4)}"
        self._installation = installation
        self._client = client
        self._minimum, self._maximum = minimum, maximum
        self._ambushes: dict[Role, list[Ambush]] = {"operator": [], "gateway": []}
        self._witness = Witness(client, installation.pools, installation.sandboxes, maximum)
        self._key = f"lsp_{secrets.token_hex(8)}_{secrets.token_hex(32)}"
        self._stubs: Process | None = None
        self._http: aiohttp.ClientSession | None = None

    # -- use ---------------------------------------------------------------------------------------

    def clients(self, draw: random.Random) -> Clients:
        """Clients of all gateways."""
        assert self._http is not None
        gateways = [victim.url for victim in self.victims["gateway"]]
        return Clients(gateways, self._key, self.runtime, self._http, draw)

    def ambush(self, role: Role, call: str, moment: Literal["asked", "meanwhile", "done"]) -> Ambush:
        """Whoever of this role makes such a call first is killed. Takes the place of earlier ambushes."""
        made = Ambush(call, moment)
        self._ambushes[role][:] = [made]
        return made

    async def strike(self, draw: random.Random) -> None:
        """SIGKILL a gateway, or the operator that leads; sometimes for so long that the other takes over."""
        if draw.random() < 0.6:
            victim = draw.choice(self.victims["gateway"])
            victim.downtime = draw.choice((0.0, 1.0, 3.0))
        else:
            victim = await self._leader()
            victim.downtime = draw.choice((0.0, 2.0, TAKE_OVER))
        victim.kill()

    def worsen(self, faults: Callable[[], Faults]) -> None:
        """From now on the roads have these faults."""
        for road in self.roads:
            road.faults = faults()

    async def _leader(self) -> Victim:
        settings = self._installation.settings
        lease = await self._client.get(LEASE, settings.lease, settings.system_namespace)
        holder = (lease.spec or {}).get("holderIdentity")
        operators = self.victims["operator"]
        return next((one for one in operators if one.name == holder), operators[0])

    async def settled(self, limit: float) -> str:
        """Wait until there is a full pool and nothing else; what there is beside that at the limit."""
        deadline = time.monotonic() + limit
        while left := await self._witness.left(self._minimum):
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(_PAUSE)
        return ""

    def wrong(self, clients: Clients) -> list[str]:
        """Everything that must not be, as everybody saw it since the last time; binds since the start."""
        assert self._stubs is not None
        victims = [*self.victims["operator"], *self.victims["gateway"]]
        found = [
            *clients.seen.wrong,
            *self._witness.wrong,
            *wrong_binds(self._stubs.output(), clients.seen.served),
            *(f"{one.name} ended by itself {one.accidents} times" for one in victims if one.accidents),
            *(f"{one.name} had {one.memory} bytes" for one in victims if one.memory > MEMORY),
        ]
        self._witness.wrong.clear()
        for one in victims:
            one.accidents = 0
        return found

    def report(self, clients: Clients) -> str:
        """What happened, in numbers."""
        victims = [*self.victims["operator"], *self.victims["gateway"]]
        faults = sum((road.done for road in self.roads), start=Counter[str]())
        lines = [
            f"{len(clients.seen.served)} served, at most {self._witness.most} unclaimed warm pods",
            f"faults: {dict(faults)}",
            *(f"{one.name}: {one.deaths} deaths, {one.memory >> 20} MiB" for one in victims),
            *(f"{count} × {why}" for why, count in clients.seen.retried.most_common(20)),
            *(one.tail() for one in victims),
        ]
        return "\n".join(lines)

    # -- start -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Everything runs for as long as the block."""
        folder = self._installation.folder
        async with AsyncExitStack() as stack:
            self._http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            await self._make_objects()
            stack.push_async_callback(self._client.delete, RUNTIME, self.runtime)
            await self._witness.start()
            stack.push_async_callback(self._witness.stop)
            namespaces = (self._installation.sandboxes, self._installation.pools)
            stubs = ("benchmarks.kubernetes.stubs", self._installation.settings.key_file, *namespaces)
            self._stubs = Process(folder, self._http, 0, *stubs)
            stack.push_async_callback(self._stubs.stop)
            await self._stubs.said(SERVING)
            for number in range(OPERATORS):
                await self._start(stack, "operator", f"operator-{number}")
            for number in range(GATEWAYS):
                await self._start(stack, "gateway", f"gateway-{number}")
            looking = asyncio.create_task(self._look())
            stack.callback(looking.cancel)
            yield

    async def _start(self, stack: AsyncExitStack, role: Role, name: str) -> None:
        folder, port = self._installation.folder, free_port()
        command = self._operator(name, port) if role == "operator" else self._gateway(name, port)
        kubeconfig = folder / f"{name}.kubeconfig"
        victim = Victim(name, f"http://127.0.0.1:{port}", kubeconfig, folder / f"{name}.log", *command)
        road = Road(Faults(), victim.kill, self._ambushes[role])
        await road.start()
        stack.push_async_callback(road.stop)
        road.kubeconfig(kubeconfig)
        self.victims[role].append(victim)
        self.roads.append(road)
        stack.push_async_callback(victim.stop)
        await victim.start()

    def _operator(self, name: str, port: int) -> tuple[str, ...]:
        changed = {"identity": name, "http_port": port, "webhook_port": free_port()}
        return ("llmsafespace_operator", "--config", str(self._settings(name, **changed)))

    def _gateway(self, name: str, port: int) -> tuple[str, ...]:
        folder = self._installation.folder
        data = folder / f"{name}.data"  # one that serves has it to itself; the store is everybody's
        data.mkdir()
        (folder / "first-key").write_text(self._key)
        values = {
            "warm_pools": [],
            "rate_limit": 1e6,
            "rate_burst": 1_000_000,
            "database_url": f"sqlite:///{folder}/db.sqlite",
        }
        config = folder / "gateway.json"
        config.write_text(json.dumps({"GatewayApp": values}))
        return (
            *("tests.cluster.chaos.impatient_gateway", ORPHAN_GRACE, "--backend", "kubernetes"),
            *("--kubernetes-settings", str(self._settings("gateways")), "--config", str(config)),
            *("--port", str(port), "--data-dir", str(data)),
            *("--first-key-file", str(folder / "first-key")),
        )

    def _settings(self, name: str, **changes: Any) -> Path:
        path = self._installation.folder / f"{name}.settings.json"
        settings = msgspec.structs.replace(self._installation.settings, **changes)
        path.write_bytes(msgspec.json.encode(settings))
        return path

    async def _make_objects(self) -> None:
        # Runtimes are everybody's: a language that nobody else asks for, an image that no pod really has.
        spec = {"image": f"localhost/{self.runtime}:1", "language": "chaos", "version": "1"}
        await self._client.create(RUNTIME, {"metadata": {"name": self.runtime}, "spec": spec})
        pool = {
            "runtime": self.runtime,
            "minSize": self._minimum,
            "maxSize": self._maximum,
            "ttl": 0,
            "autoScaling": {"enabled": True, "targetUtilization": 40, "scaleDownDelay": 3},
        }
        await self._client.create(
            WARMPOOL, {"metadata": {"name": POOL}, "spec": pool}, self._installation.pools
        )

    async def _look(self) -> None:
        while True:
            for victims in self.victims.values():
                for victim in victims:
                    victim.look()
            await asyncio.sleep(_LOOK)
