"""The cluster as one gateway process knows it: the API server, informers, claims and keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

from llmsafespace_gateway.backends.kubernetes import objects
from llmsafespace_gateway.backends.kubernetes.errors import unavailable
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import KubeError, NotFound
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.resources import settings as configuration
from llmsafespace_kube.resources import types
from llmsafespace_kube.resources.kinds import PROFILE, RUNTIME, SANDBOX, WARMPOD, WARMPOOL

START_LIMIT = 60.0  # seconds for the first lists
_ID = "id"  # index: by public id


class Cluster:
    """Informers of everything that the gateway reads. Configure what they tell, then `start`."""

    def __init__(
        self, client: KubeClient, settings: configuration.Settings, key: bytes, egress_key: bytes | None
    ) -> None:
        self.client = client
        self.settings = settings
        self.key = key
        self.egress_key = egress_key
        pools, sandboxes = settings.pool_namespaces, list(settings.sandbox_namespaces)
        self.sandboxes: Informer[types.Sandbox] = Informer(client, SANDBOX, sandboxes)
        self.warm_pods: Informer[types.WarmPod] = Informer(client, WARMPOD, pools)
        self.warm_pools: Informer[types.WarmPool] = Informer(client, WARMPOOL, pools)
        self.profiles: Informer[types.SandboxProfile] = Informer(
            client, PROFILE, [settings.system_namespace, *sandboxes, *pools]
        )
        self.environments: Informer[types.RuntimeEnvironment] = Informer(client, RUNTIME)
        self.catalogue = Catalogue(self.environments, self.profiles, settings.system_namespace)
        self.claims = Claims(client, self.catalogue, self.warm_pods, self.warm_pools)
        self.sandboxes.index(_ID, lambda sandbox: [objects.public_id(sandbox)])

    @classmethod
    async def connect(cls, path: Path) -> Cluster:
        """The cluster that the settings file at `path` is for. Raises ApiError with what to do."""
        try:
            settings = configuration.load(path)
            key = configuration.read_key(settings.key_file)
            egress = settings.egress_key_file
            egress_key = configuration.read_key(egress) if egress else None
            return cls(await KubeClient.connect(user_agent="llmsafespace-gateway"), settings, key, egress_key)
        except configuration.SettingsError as error:
            raise ApiError("invalid_request", str(error)) from error
        except KubeError as error:
            raise ApiError("service_unavailable", str(error)) from error

    async def start(self) -> None:
        """Return when everything has been listed. Raises ApiError when that takes too long."""
        try:
            async with asyncio.timeout(START_LIMIT):
                await asyncio.gather(*(informer.start() for informer in self._informers()))
        except TimeoutError as error:
            raise unavailable(
                f"the API server did not list everything within {START_LIMIT:g} s: are the custom "
                "resources there, and may the gateway read them? The log says what was refused"
            ) from error

    async def stop(self) -> None:
        """Let go of the API server."""
        for informer in self._informers():
            await informer.stop()
        await self.client.close()

    def _informers(self) -> tuple[Informer[types.Sandbox], ...]:
        return (  # type: ignore[return-value]  # of several kinds
            self.sandboxes,
            self.warm_pods,
            self.warm_pools,
            self.profiles,
            self.environments,
        )

    # -- what is there -----------------------------------------------------------------------------------

    def known(self, sandbox_id: str) -> types.Sandbox | None:
        """The Sandbox with this public id, as far as the informer knows."""
        return next(iter(self.sandboxes.by_index(_ID, sandbox_id)), None)

    async def sandbox(self, sandbox_id: str) -> types.Sandbox | None:
        """The same; asked for while it is not known, or not where it runs: another gateway may know that.

        Raises KubeError.
        """
        found = self.known(sandbox_id)
        if found is not None and objects.is_decided(found):
            return found
        for namespace in self.settings.sandbox_namespaces:
            try:
                found = await self.client.get(SANDBOX, sandbox_id, namespace)
            except NotFound:
                continue
            self.sandboxes.observe(found)
            return found
        return None

    async def warm_pod(self, sandbox: types.Sandbox) -> types.WarmPod | None:
        """The WarmPod of a Sandbox, None when it does not say that it is this one's. Raises KubeError."""
        reference = objects.warm_pod_of(sandbox)
        if reference is None:
            return None
        found = self.warm_pods.get(reference.name, reference.namespace)
        if found is None or not objects.has(sandbox, found):
            try:
                found = await self.client.get(WARMPOD, reference.name, reference.namespace)
            except NotFound:
                return None
        return found if objects.has(sandbox, found) else None
