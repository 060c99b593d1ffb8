"""The operator's process: configuration, wiring, start and stop.

Informers, probes and the webhook run in every replica. Controllers run only in the leader (api/lease.py):
when a replica becomes the leader, it reconciles all known objects, and then those that change.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from tornado.httpserver import HTTPServer

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.errors import KubeError
from llmsafespace_kube.api.events import Events
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.api.lease import Leadership
from llmsafespace_kube.api.objects import key_of
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.resources import kinds, names
from llmsafespace_kube.resources.settings import Address, Settings, SettingsError, load, read_key
from llmsafespace_operator import health, logs
from llmsafespace_operator.admission.webhook import webhook
from llmsafespace_operator.environments.profiles import ProfileReconciler
from llmsafespace_operator.environments.runtimes import RuntimeReconciler
from llmsafespace_operator.pods.room import Waiting
from llmsafespace_operator.sandbox import unserved
from llmsafespace_operator.sandbox.apply import Actions
from llmsafespace_operator.sandbox.observe import Caches as SandboxCaches
from llmsafespace_operator.sandbox.observe import Observer
from llmsafespace_operator.sandbox.reconciler import SandboxReconciler
from llmsafespace_operator.sandbox.turns import Turns
from llmsafespace_operator.warmpool.caches import Caches as PoolCaches
from llmsafespace_operator.warmpool.pods import WarmPodReconciler
from llmsafespace_operator.warmpool.pools import WarmPoolReconciler
from llmsafespace_operator.warmpool.records import Records

log = logging.getLogger(__name__)

_NAME = "llmsafespace-operator"
_STOP_LIMIT = 5.0  # seconds
_COUNT_PAUSE = 1.0


class Informers:
    """All informers: for the objects in the configured namespaces, and for the runtimes."""

    def __init__(self, client: KubeClient, settings: Settings) -> None:
        pools, sandboxes = settings.pool_namespaces, list(settings.sandbox_namespaces)
        both = [*pools, *sandboxes]
        selector = f"{names.COMPONENT}={names.SANDBOX_COMPONENT}"
        self.sandboxes = Informer(client, kinds.SANDBOX, sandboxes)
        self.warm_pools = Informer(client, kinds.WARMPOOL, pools)
        self.warm_pods = Informer(client, kinds.WARMPOD, pools)
        self.pods = Informer(client, kinds.POD, both, label_selector=selector)
        self.profiles = Informer(client, kinds.PROFILE, [settings.system_namespace, *both])
        self.runtimes = Informer(client, kinds.RUNTIME)
        self.by_name: dict[str, Informer[Any]] = {
            kind.plural: informer
            for kind, informer in (
                (kinds.SANDBOX, self.sandboxes),
                (kinds.WARMPOOL, self.warm_pools),
                (kinds.WARMPOD, self.warm_pods),
                (kinds.POD, self.pods),
                (kinds.PROFILE, self.profiles),
                (kinds.RUNTIME, self.runtimes),
            )
        }

    async def start(self) -> None:
        """Start all informers; return when every one has listed its objects."""
        await asyncio.gather(*(informer.start() for informer in self.by_name.values()))

    async def stop(self) -> None:
        """Stop all informers."""
        for informer in self.by_name.values():
            await informer.stop()


class Operator:
    """All parts of the operator. Informers always run; controllers run while this process is the leader.

    The constructor raises SettingsError if a key cannot be read.
    """

    def __init__(self, client: KubeClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._events = Events(client, _NAME)
        self._informers = Informers(client, settings)
        self._catalogue = Catalogue(
            self._informers.runtimes, self._informers.profiles, settings.system_namespace
        )
        self._listed = False
        self._waiting = Waiting()
        found = self._informers
        self._runtimes = RuntimeReconciler(client, found.runtimes, found.pods, settings)
        self._profiles = ProfileReconciler(client, found.profiles, settings)
        self._warm_pods, self._warm_pools = self._of_pools()
        self._sandboxes = self._of_sandboxes()
        self._unserved = unserved.watchers(client, self._events, settings)
        for one in (self._runtimes, self._profiles, self._warm_pods, self._warm_pools, self._sandboxes):
            one.follow()
        for each in self._unserved:
            each.follow()

    async def run(self) -> None:
        """Run until cancelled. Raises OSError if the HTTP port is in use."""
        probes = HTTPServer(health.application(self._informers.by_name, lambda: self._listed))
        probes.listen(self._settings.http_port)
        served = webhook(self._client, self._settings) if self._settings.webhook_config else None
        elsewhere: asyncio.Task[None] | None = None
        try:
            if served is not None:
                await served.start()
            await self._informers.start()
            self._listed = True
            log.info("all objects are listed")
            elsewhere = asyncio.create_task(unserved.follow_all(self._unserved))
            await self._leadership().run(self._lead)
        finally:
            probes.stop()
            if served is not None:
                await served.stop()
            if elsewhere is not None:
                elsewhere.cancel()
            for each in self._unserved:
                await each.objects.stop()
            await self._informers.stop()
            await self._events.close()

    def _leadership(self) -> Leadership:
        settings = self._settings
        identity = settings.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        return Leadership(self._client, settings.system_namespace, settings.lease, identity)

    async def _lead(self) -> None:
        """Reconcile all objects, because another leader may have left work undone; then those that change."""
        informers = self._informers
        every: list[tuple[Informer[Any], Controller]] = [
            (informers.runtimes, self._runtimes.controller),
            (informers.profiles, self._profiles.controller),
            (informers.warm_pods, self._warm_pods.controller),
            (informers.warm_pools, self._warm_pools.controller),
            (informers.sandboxes, self._sandboxes.controller),
            *((each.objects, each.controller) for each in self._unserved),
        ]
        await self._count()
        self._sandboxes.begin()
        controllers = [self._runtimes.images_controller, *(controller for _, controller in every)]
        try:
            for controller in controllers:
                controller.start()
            self._runtimes.rewrite()
            self._profiles.sweep()
            for informer, controller in every:
                for item in informer.items():
                    controller.enqueue(key_of(item))
            await asyncio.get_running_loop().create_future()
        finally:
            for controller in controllers:
                await controller.stop()

    async def _count(self) -> None:
        """List the WarmPods again: a watch may not have shown yet what the last leader created.

        Without this, pools would be filled beyond their size.
        """
        while True:
            try:
                return await self._informers.warm_pods.refresh()
            except KubeError as error:
                log.warning("the warm pods cannot be listed: %s", error)
            await asyncio.sleep(_COUNT_PAUSE)

    def _of_pools(self) -> tuple[WarmPodReconciler, WarmPoolReconciler]:
        found, records = self._informers, Records()
        caches = PoolCaches(
            warm_pools=found.warm_pools,
            warm_pods=found.warm_pods,
            pods=found.pods,
            sandboxes=found.sandboxes,
            profiles=found.profiles,
            runtimes=found.runtimes,
            catalogue=self._catalogue,
        )
        key = read_key(self._settings.key_file)
        warm_pods = WarmPodReconciler(self._client, caches, self._events, records, self._settings, key)
        return warm_pods, WarmPoolReconciler(self._client, caches, self._events, records, self._waiting)

    def _of_sandboxes(self) -> SandboxReconciler:
        found = self._informers
        caches = SandboxCaches(
            sandboxes=found.sandboxes,
            warm_pods=found.warm_pods,
            pods=found.pods,
            profiles=found.profiles,
            runtimes=found.runtimes,
            warm_pools=found.warm_pools,
        )
        observer = Observer(self._client, caches, self._catalogue, self._settings)
        claims = Claims(self._client, self._catalogue, found.warm_pods, found.warm_pools)
        actions = Actions(self._client, caches, observer, claims, self._settings, self._waiting)
        turns = Turns(self._settings.max_cold_starts)
        return SandboxReconciler(caches, observer, actions, self._events, turns, self._waiting)


async def _serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then stop within _STOP_LIMIT seconds."""
    client = await KubeClient.connect(user_agent=_NAME)
    try:
        running = asyncio.create_task(Operator(client, settings).run())
        asked = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not running.done():
            running.cancel()
            await asyncio.wait((running,), timeout=_STOP_LIMIT)
        if running.done() and not running.cancelled():
            running.result()
    finally:
        await client.close()


def main() -> None:
    """The command `llmsafespace-operator`."""
    arguments = _parser().parse_args()
    logs.configure(arguments.log_level)
    try:
        settings = load(arguments.config)
        uvloop.run(_serve(_changed(settings, arguments)))
    except (SettingsError, KubeError, OSError) as error:
        sys.exit(f"{_NAME}: {error}")


def _changed(settings: Settings, arguments: argparse.Namespace) -> Settings:
    return msgspec.structs.replace(
        settings,
        egress_proxy=arguments.egress_proxy or settings.egress_proxy,
        canaries=[*settings.canaries, *arguments.canary],
        identity=arguments.identity or settings.identity,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_NAME,
        description="Reconciles LLMSafeSpace's custom resources (sandboxes, warm pools, …). Uses the API "
        "server that KUBECONFIG names, otherwise that of the cluster in which it runs.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings, YAML or JSON")
    parser.add_argument(
        "--egress-proxy",
        type=_address,
        metavar="IP:PORT",
        help="address of the egress proxy for sandboxes; overrides egressProxy of the settings",
    )
    parser.add_argument(
        "--canary",
        type=_address,
        action="append",
        default=[],
        metavar="IP:PORT",
        help="an address that sandboxes must not reach, in addition to canaries of the settings; repeatable",
    )
    parser.add_argument(
        "--identity",
        metavar="NAME",
        help="name in the lease. A process that restarts under the same name need not wait until the lease "
        "expires. Default: identity of the settings, or the host name and a random part",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    return parser


def _address(text: str) -> str:
    try:
        return msgspec.convert(text, Address)
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(
            f"must be an address with a port, such as 10.96.0.7:3128, got {text!r}"
        ) from None
