"""The Kubernetes backend: sandboxes in pods, behind the SandboxBackend protocol."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from llmsafespace_gateway.backends.base import (
    Claim,
    Ended,
    Place,
    Profile,
    Quarantined,
    Resources,
    Runtime,
    RuntimeUnavailable,
    SandboxSpec,
    Start,
    Stranger,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_gateway.backends.kubernetes import cold, listing, objects
from llmsafespace_gateway.backends.kubernetes.ahead import Ahead
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.backends.kubernetes.cold import ColdStarts
from llmsafespace_gateway.backends.kubernetes.errors import explained, unavailable
from llmsafespace_gateway.backends.kubernetes.pools import PoolChanged, Pools
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.errors import NotFound
from llmsafespace_kube.claims import agents, grants, profiles
from llmsafespace_kube.claims.choice import Request, request_of
from llmsafespace_kube.claims.egress_token import sign
from llmsafespace_kube.claims.runtimes import Resolved, label
from llmsafespace_kube.claims.tokens import agent_token
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kinds import SANDBOX
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.proof import ProofError
from llmsafespace_protocol.requests import BindRequest, Open, OpenRpc

GONE_LIMIT = 5.0  # seconds for the operator to let a deleted Sandbox go
_NO_ADDRESS = "192.0.2.1"
_RPC = OpenRpc()


class Agent(msgspec.Struct, frozen=True):
    """Where a sandbox's agent is, and whose uid its token is derived from."""

    address: str
    owner: str


class KubernetesBackend:
    """Warm pods are claimed from here; pods are made, watched and removed by the operator alone.

    `strict` refuses a runtime version that is not there, instead of serving the nearest.
    """

    name = "kubernetes"
    shared = True
    extends = False  # Kubernetes ends a pod at its deadline, which can only come nearer

    def __init__(self, cluster: Cluster, *, strict: bool = False) -> None:
        self._cluster = cluster
        self._strict = strict
        self._cold = ColdStarts(cluster)
        self._pools = Pools(cluster)
        self._ahead = Ahead()
        self._claimed: dict[str, types.WarmPod] = {}  # whose Sandbox is not there yet
        self._news: asyncio.Queue[Ended | Stranger] = asyncio.Queue()
        self._listed = False
        cluster.sandboxes.on_change(self._changed)

    @classmethod
    async def connect(cls, settings: Path, *, strict: bool = False) -> KubernetesBackend:
        """A backend by a settings file. Raises ApiError with what to do."""
        return cls(await Cluster.connect(settings), strict=strict)

    async def start(self) -> None:
        """See SandboxBackend. Raises ApiError when the API server does not answer."""
        await self._cluster.start()
        self._listed = True

    def on_pool(self, callback: PoolChanged) -> None:
        """Call `callback` for every pool that is there, and whenever one comes, changes or goes."""
        self._pools.on_pool = callback

    async def stop(self) -> None:
        """See SandboxBackend. Warm pods are the operator's."""
        await self._cluster.stop()

    # -- claim -------------------------------------------------------------------------------------

    async def claim(self, spec: SandboxSpec) -> Claim:
        """See SandboxBackend."""
        namespace = self._namespace(spec.tenant)
        resolved = self._resolved(spec.runtime)
        pool = self._pools.named(spec)
        pool_object = pool.metadata.name if pool is not None else None
        wanted = objects.sandbox_spec(spec, pool_object)
        profile = self._profile(wanted, namespace)
        if obstacle := profiles.missing_runtime_class(profile):
            raise RuntimeUnavailable(obstacle)
        self._egress_token(spec.sandbox_id, _NO_ADDRESS, wanted, profile)  # refused before a pod is taken
        request = request_of(wanted, namespace, resolved.environment, profile)
        if pool is not None:
            self._pools.check(request, pool)
        found = await self._claim(request, types.NamedObject(spec.sandbox_id, namespace))
        if isinstance(found, str):
            sandbox = await self._cold.start(spec, namespace, found, pool_object)
            of = self._pools.spec(pool) if pool is not None else None
            start, address = Start(kind="cold", reason=found), sandbox.status.pod_ip
            limits: types.Resources | types.PoolResources = wanted.resources
        else:
            self._claimed[spec.sandbox_id] = found
            of = self._pools.of(found)
            start, address = Start(kind="warm"), found.status.pod_ip
            limits = found.status.resources or types.PoolResources()
        environment = resolved.environment
        return Claim(
            sandbox_id=spec.sandbox_id,
            runtime=label(environment),
            languages=(environment.spec.language,),
            start=msgspec.structs.replace(
                start,
                pool=of.name if of is not None else None,
                pool_owner=of.said_owner if of is not None else None,
                warnings=objects.warnings(resolved.warning, spec.env),
            ),
            isolation=self._isolation(profile, spec.security_level, limits),
            egress_token=self._egress_token(spec.sandbox_id, address, wanted, profile),
        )

    async def _claim(self, request: Request, sandbox: types.NamedObject) -> types.WarmPod | str:
        """A warm pod, with a stream to its agent on the way; nothing is left of one where there is no pod."""
        name = sandbox.name
        found: types.WarmPod | str = ""
        try:
            with explained("no sandbox could be claimed"):
                found = await self._cluster.claims.claim(
                    request, sandbox, name, trying=functools.partial(self._dial_ahead, name)
                )
        finally:
            if isinstance(found, str):
                self._ahead.drop(name)
        return found

    def _namespace(self, tenant: str) -> str:
        for namespace, owner in self._cluster.settings.sandbox_namespaces.items():
            if owner == tenant:
                return namespace
        raise ApiError(
            "service_unavailable",
            f"the tenant {tenant} has no namespace in the cluster; an administrator adds one to the settings",
        )

    def _resolved(self, runtime: str) -> Resolved:
        resolved = self._cluster.catalogue.runtime(runtime)
        if isinstance(resolved, str):
            raise RuntimeUnavailable(resolved)
        if self._strict and resolved.warning:
            raise RuntimeUnavailable(resolved.warning)
        return resolved

    def _profile(self, spec: types.SandboxSpec, namespace: str) -> types.SandboxProfile | None:
        found = self._cluster.catalogue.profile(spec.profile_ref, spec.security_level, namespace)
        return found if not isinstance(found, str) else None

    def _isolation(
        self,
        profile: types.SandboxProfile | None,
        security_level: str,
        limits: types.Resources | types.PoolResources,
    ) -> dict[str, object]:
        return objects.isolation(profile, security_level, limits, self._cluster.egress_key is not None)

    def _egress_token(
        self, sandbox_id: str, address: str, spec: types.SandboxSpec, profile: types.SandboxProfile | None
    ) -> str | None:
        if self._cluster.egress_key is None:
            return None
        grant = grants.egress_grant(sandbox_id, address, spec, profile, time.time())
        try:
            return sign(self._cluster.egress_key, grant)
        except ValueError as error:
            raise ApiError("invalid_request", str(error)) from error

    async def record(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """See SandboxBackend. A cold start's Sandbox is there already."""
        pod = self._claimed.get(claim.sandbox_id)
        if pod is None:
            return
        with explained("the sandbox could not be recorded"):
            await cold.create(self._cluster, objects.warm_sandbox(spec, self._namespace(spec.tenant), pod))
        self._claimed.pop(claim.sandbox_id, None)

    # -- living sandboxes --------------------------------------------------------------------------

    async def stored(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """See SandboxBackend. The Sandbox object says all that is needed."""

    async def hold_end(self, sandbox_id: str) -> None:
        """See SandboxBackend. The Sandbox object keeps it."""

    async def noted(self, sandbox_id: str) -> None:
        """See SandboxBackend. The cluster forgets ends by itself."""

    async def quarantined(self) -> list[Quarantined]:
        """See SandboxBackend. The operator tells of broken sandboxes by conditions and events."""
        return []

    async def dial(self, sandbox_id: str, open_: Open) -> FrameStream:
        """See SandboxBackend."""
        with explained(f"the sandbox {sandbox_id} cannot be found"):
            agent = await self._agent(sandbox_id)
        ahead = await self._ahead.take(sandbox_id, agent.owner) if open_ == _RPC else None
        try:
            return ahead or await self._dial(agent, open_)
        except (ProofError, OSError) as error:
            raise unavailable(f"the sandbox {sandbox_id} cannot be reached: {error}") from error

    async def _dial(self, agent: Agent, open_: Open) -> FrameStream:
        token = agent_token(self._cluster.key, agent.owner)
        return await agents.dial(agent.address, names.AGENT_PORT, token, open_)

    def _dial_ahead(self, sandbox_id: str, pod: types.WarmPod) -> None:
        agent = Agent(pod.status.pod_ip, pod.metadata.uid)
        self._ahead.begin(sandbox_id, agent.owner, self._dial(agent, _RPC))

    async def _agent(self, sandbox_id: str) -> Agent:
        """Raises KubeError, and the ApiErrors of `dial`: only the operator says that a sandbox has ended."""
        pod = self._claimed.get(sandbox_id)
        if pod is not None:
            return Agent(pod.status.pod_ip, pod.metadata.uid)
        sandbox = await self._cluster.sandbox(sandbox_id)
        if sandbox is None or objects.end_of(sandbox) is not None:
            raise ApiError("not_found", f"there is no living sandbox {sandbox_id}")
        if objects.warm_pod_of(sandbox) is not None:
            pod = await self._cluster.warm_pod(sandbox)
            agent = Agent(pod.status.pod_ip, pod.metadata.uid) if pod is not None else None
        else:
            address = sandbox.status.pod_ip
            agent = Agent(address, sandbox.metadata.uid) if address else None
        if agent is None:
            raise unavailable(
                f"the sandbox {sandbox_id} has no pod now, and the operator has not said that it ended; "
                "try again"
            )
        return agent

    async def find(self, sandbox_id: str) -> Place | None:
        """See SandboxBackend."""
        with explained(f"the sandbox {sandbox_id} cannot be found"):
            sandbox = await self._cluster.sandbox(sandbox_id)
        living = sandbox is not None and objects.end_of(sandbox) is None
        return objects.place(sandbox) if sandbox is not None and living else None

    async def living(self) -> list[Place]:
        """See SandboxBackend. A cold start that is under way is its gateway's, however long it takes."""
        return [
            objects.place(sandbox)
            for sandbox in self._cluster.sandboxes.items()
            if names.made_by_gateway(sandbox.metadata.name) and objects.is_there(sandbox)
        ]

    async def strangers(self) -> list[Stranger]:
        """See SandboxBackend."""
        return [
            self._stranger(sandbox)
            for sandbox in self._cluster.sandboxes.items()
            if objects.is_stranger(sandbox)
        ]

    def _stranger(self, sandbox: types.Sandbox) -> Stranger:
        spec, namespace = sandbox.spec, sandbox.metadata.namespace
        reference = objects.warm_pod_of(sandbox)
        pod = self._cluster.warm_pods.get(reference.name, reference.namespace) if reference else None
        limits = pod.status.resources if pod is not None else None
        isolation = self._isolation(
            self._profile(spec, namespace), spec.security_level, limits or spec.resources
        )
        return objects.stranger(sandbox, self._cluster.settings.sandbox_namespaces[namespace], isolation)

    async def set_lifetime(self, sandbox_id: str, seconds: float) -> None:
        """See SandboxBackend. The operator keeps it: an annotation says what the spec does not."""
        sandbox = self._cluster.known(sandbox_id)
        if sandbox is None or not objects.is_shortened(sandbox, seconds):
            return
        ends = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        meta = sandbox.metadata
        body = {"metadata": {"uid": meta.uid, "annotations": {names.ENDS_AT: ends}}}
        with explained(f"the lifetime of {sandbox_id} cannot be changed"), contextlib.suppress(NotFound):
            self._cluster.sandboxes.observe(
                await self._cluster.client.patch(SANDBOX, meta.name, body, meta.namespace)
            )

    async def fate(self, sandbox_id: str) -> Ended | None:
        """See SandboxBackend."""
        with explained(f"the sandbox {sandbox_id} cannot be found"):
            sandbox = await self._cluster.sandbox(sandbox_id)
        if sandbox is None:
            return Ended(sandbox_id=sandbox_id, end="lost", message="its Sandbox is no longer there")
        return objects.end_of(sandbox)

    async def destroy(self, sandbox_id: str, end: str = "terminated") -> bool:
        """See SandboxBackend. A warm pod that was claimed and never recorded is freed by the operator."""
        self._claimed.pop(sandbox_id, None)
        self._ahead.drop(sandbox_id)
        with explained(f"the sandbox {sandbox_id} cannot be ended"):
            sandbox = await self._cluster.sandbox(sandbox_id)
            if sandbox is None:
                return False
            name, namespace, uid = (
                sandbox.metadata.name,
                sandbox.metadata.namespace,
                sandbox.metadata.uid,
            )
            deleted = await self._cluster.client.delete(SANDBOX, name, namespace, uid=uid)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_LIMIT):
                await self._cluster.sandboxes.wait(
                    name, namespace, lambda now: now is None or now.metadata.uid != uid
                )
        return deleted

    async def watch(self) -> AsyncIterator[Ended | Stranger]:
        """See SandboxBackend. For one reader."""
        while True:
            yield await self._news.get()

    def _changed(self, old: types.Sandbox | None, new: types.Sandbox | None) -> None:
        ended = objects.news_of(old, new)
        if ended is not None:
            self._news.put_nowait(ended)
        elif self._listed and new is not None and objects.is_new_stranger(old, new):
            self._news.put_nowait(self._stranger(new))  # those of the first list: see `strangers`

    # -- what there is to be had ---------------------------------------------------------------------

    async def runtimes(self) -> list[Runtime]:
        """See SandboxBackend."""
        return listing.served(self._cluster.environments.items())

    async def profiles(self) -> list[Profile]:
        """See SandboxBackend."""
        system = self._cluster.settings.system_namespace
        known = self._cluster.profiles.items()
        return listing.profiles(each for each in known if each.metadata.namespace == system)

    async def pools(self, tenant: str | None = None) -> list[WarmPoolSpec] | None:
        """See SandboxBackend."""
        return self._pools.visible(tenant)

    def capacity(self) -> Resources | None:
        """See SandboxBackend. A cluster can get nodes."""
        return None

    async def apply_pool(self, pool: WarmPoolSpec) -> None:
        """See SandboxBackend."""
        await self._pools.apply(pool)

    async def delete_pool(self, pool: WarmPoolSpec) -> None:
        """See SandboxBackend."""
        await self._pools.delete(pool)

    async def pool_status(self, pool: WarmPoolSpec) -> WarmPoolStatus:
        """See SandboxBackend."""
        return self._pools.status(pool)
