"""Carries out the actions of a plan. Each method is one action, safe to repeat if its answer was lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Conflict, Forbidden, Invalid, NotFound
from llmsafespace_kube.api.objects import key_of
from llmsafespace_kube.claims import binding, tokens
from llmsafespace_kube.claims.choice import request_of
from llmsafespace_kube.claims.claim import Claims
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.kinds import POD, SANDBOX, WARMPOD
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.settings import Settings, read_key
from llmsafespace_kube.resources.types import NamedObject, PoolResources, Sandbox, SandboxStatus, WarmPod
from llmsafespace_operator.pods.build import Recipe
from llmsafespace_operator.pods.ends import End
from llmsafespace_operator.pods.made_as import made_as
from llmsafespace_operator.pods.room import Spare, Waiting, giving_way, made_since, nodes_for
from llmsafespace_operator.pods.start import NameTaken, start
from llmsafespace_operator.sandbox import plan, status
from llmsafespace_operator.sandbox.binding import bind_request
from llmsafespace_operator.sandbox.observe import Caches, Observer, Wanted
from llmsafespace_operator.sandbox.status import Obstacle
from llmsafespace_protocol.proof import ProofError

log = logging.getLogger(__name__)


class Blocked(Exception):
    """The sandbox cannot start now; `obstacle` says why. It is tried again."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.obstacle = Obstacle(reason, message)


class Refused(Exception):
    """The sandbox can never start; `end` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.end = End("failed", message)


class Actions:
    """Applies actions to the API server and to agents, and puts the API server's answers into the caches.

    The constructor raises SettingsError if a key cannot be read.
    """

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        observer: Observer,
        claims: Claims,
        settings: Settings,
        waiting: Waiting,
    ) -> None:
        self._client = client
        self._caches = caches
        self._observer = observer
        self._claims = claims
        self._settings = settings
        self._waiting = waiting
        self._key = read_key(settings.key_file)
        self._egress_key = read_key(settings.egress_key_file) if settings.egress_key_file else None

    async def apply(self, seen: plan.Observed, action: plan.Action) -> None:
        """Carry out one action. Raises KubeError, Blocked or Refused."""
        match action:
            case plan.AddFinalizer():
                await self._set_finalizers(seen.sandbox, present=True)
            case plan.RemoveFinalizer():
                await self._set_finalizers(seen.sandbox, present=False)
            case plan.Claim():
                await self._claim(seen)
            case plan.StartPod(deadline=deadline):
                await self._start(seen.sandbox, deadline)
            case plan.Bind(address=address):
                await self._bind(seen, address)
            case plan.GiveWay():
                await self._give_way(seen)
            case plan.Assign(warm_pod=warm_pod):
                await self._assign(warm_pod)
            case plan.LimitPod(pod=pod, deadline=deadline):
                await self._limit(seen.sandbox, pod, deadline)
            case plan.Write(status=wanted):
                await self._write(seen.sandbox, wanted)
            case plan.DeleteWarmPod(warm_pod=one):
                meta = one.metadata
                await self._client.delete(WARMPOD, meta.name, meta.namespace, uid=meta.uid)
            case plan.DeletePod(pod=pod):
                meta = pod.metadata
                await self._client.delete(POD, meta.name, meta.namespace, uid=meta.uid)
            case plan.DeleteSandbox():
                meta = seen.sandbox.metadata
                await self._client.delete(SANDBOX, meta.name, meta.namespace, uid=meta.uid)

    async def _claim(self, seen: plan.Observed) -> None:
        sandbox, meta = seen.sandbox, seen.sandbox.metadata
        wanted = self._wanted(sandbox)
        request = request_of(sandbox.spec, meta.namespace, wanted.environment, wanted.profile)
        public = names.sandbox_id(meta.name, meta.uid)
        found = await self._claims.claim(request, NamedObject(meta.name, meta.namespace), public)
        if isinstance(found, str):
            await self._write(sandbox, status.cold(sandbox, found, seen.now))

    async def _start(self, sandbox: Sandbox, deadline: int) -> None:
        meta, spec = sandbox.metadata, sandbox.spec
        wanted = self._wanted(sandbox)
        recipe = Recipe(
            kind=SANDBOX,
            owner=meta,
            image=wanted.environment.spec.image,
            resources=spec.resources,
            security_level=spec.security_level,
            profile=wanted.profile,
            security_context=spec.security_context,
            filesystem=spec.filesystem,
            preload_packages=wanted.pool.spec.preload_packages if wanted.pool is not None else [],
            preload_scripts=wanted.pool.spec.preload_scripts if wanted.pool is not None else [],
            sandbox_id=names.sandbox_id(meta.name, meta.uid),
            deadline=deadline,
        )
        token = tokens.agent_token(self._key, meta.uid)
        try:
            pod = await start(self._client, recipe, token, self._settings)
        except NameTaken as error:
            raise Blocked("NameTaken", str(error)) from error
        except (Forbidden, Invalid) as error:  # admission, a quota, a missing RuntimeClass
            raise Blocked("PodRefused", error.message) from error
        self._caches.pods.observe(pod)

    async def _bind(self, seen: plan.Observed, address: str) -> None:
        sandbox = seen.sandbox
        wanted = self._wanted(sandbox)
        owner, born = _origin(seen)
        try:
            request = bind_request(self._egress_key, sandbox, wanted.profile, address, born.timestamp())
            token = tokens.agent_token(self._key, owner)
            await binding.bind(address, names.AGENT_PORT, token, request)
        except OSError as error:
            raise Blocked("AgentUnreachable", f"its agent does not answer: {error}") from error
        except (ProofError, ValueError) as error:
            raise Refused(f"its agent was not bound: {error}") from error

    async def _give_way(self, seen: plan.Observed) -> None:
        """Delete warm pods once; afterwards only those that are younger than the sandbox (see room.py)."""
        sandbox, key = seen.sandbox, key_of(seen.sandbox)
        if seen.pod is None:
            return
        if self._waiting.take_turn(key):
            chosen = giving_way(sandbox.spec.resources, self._spares(seen.pod))
        elif self._waiting.has_room_made(key):
            chosen = made_since(sandbox.metadata.creation_timestamp, self._spares(seen.pod))
        else:
            return
        for one in chosen:
            if await self._delete_unclaimed(one):
                self._waiting.served(key)
                words = f"gave way to the Sandbox {sandbox.metadata.namespace}/{sandbox.metadata.name}"
                log.info("the warm pod %s/%s %s", one.metadata.namespace, one.metadata.name, words)

    async def _delete_unclaimed(self, one: WarmPod) -> bool:
        """Delete a WarmPod, unless it has been claimed in the meantime; return whether it was deleted.

        A claim changes the resource version, but so does a status: after a conflict it is read once more.
        """
        meta = one.metadata
        for _ in range(2):
            try:
                return await self._client.delete(
                    WARMPOD, meta.name, meta.namespace, uid=meta.uid, resource_version=meta.resource_version
                )
            except Conflict:
                try:
                    found = await self._client.get(WARMPOD, meta.name, meta.namespace)
                except NotFound:
                    return False
                if found.spec.claim is not None or found.metadata.uid != meta.uid:
                    return False
                meta = found.metadata
        return False

    def _spares(self, wanted: Pod) -> Iterator[Spare]:
        """Yield the unclaimed warm pods on nodes that could run `wanted`, and those without a node."""
        nodes = nodes_for(wanted, self._caches.pods.items())
        for one in self._caches.warm_pods.items():
            if one.spec.claim is not None or one.metadata.deletion_timestamp is not None:
                continue
            pod = self._caches.pods.get(one.metadata.name, one.metadata.namespace)
            if pod is None:  # not created yet
                yield Spare(one, "", PoolResources())
                continue
            resources = made_as(pod).resources
            if resources is None:
                continue
            if not pod.spec.node_name or pod.spec.node_name in nodes:
                yield Spare(one, pod.spec.node_name, resources)

    async def _assign(self, warm_pod: WarmPod) -> None:
        claim, meta = warm_pod.spec.claim, warm_pod.metadata
        if claim is None:
            raise ValueError(f"the WarmPod {meta.name} has no claim, so it cannot be assigned")
        assigned = {"phase": "Assigned", "assignedTo": claim.sandbox, "assignedAt": claim.time}
        body = {"metadata": {"uid": meta.uid}, "status": msgspec.to_builtins(assigned)}
        self._caches.warm_pods.observe(
            await self._client.patch(WARMPOD, meta.name, body, meta.namespace, subresource="status")
        )

    async def _limit(self, sandbox: Sandbox, pod: Pod, deadline: int) -> None:
        meta = pod.metadata
        public = names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid)
        body = {
            "metadata": {"uid": meta.uid, "labels": {names.SANDBOX_ID: public}},
            "spec": {"activeDeadlineSeconds": deadline},
        }
        self._caches.pods.observe(await self._client.patch(POD, meta.name, body, meta.namespace))

    async def _write(self, sandbox: Sandbox, wanted: SandboxStatus) -> None:
        """Write the status if the Sandbox is unchanged since the plan: it starts warm or cold, never both."""
        meta = sandbox.metadata
        body = {"metadata": {"resourceVersion": meta.resource_version}, "status": msgspec.to_builtins(wanted)}
        self._caches.sandboxes.observe(
            await self._client.patch(SANDBOX, meta.name, body, meta.namespace, subresource="status")
        )

    async def _set_finalizers(self, sandbox: Sandbox, *, present: bool) -> None:
        meta = sandbox.metadata
        others = [one for one in meta.finalizers if one != names.SANDBOX_FINALIZER]
        wanted = [*others, names.SANDBOX_FINALIZER] if present else others
        body = {"metadata": {"resourceVersion": meta.resource_version, "finalizers": wanted}}
        changed = await self._client.patch(SANDBOX, meta.name, body, meta.namespace)
        if present:  # without the finalizer the object may be deleted already
            self._caches.sandboxes.observe(changed)

    def _wanted(self, sandbox: Sandbox) -> Wanted:
        wanted = self._observer.wanted(sandbox)
        if isinstance(wanted, Obstacle):
            raise Blocked(wanted.reason, wanted.message)
        return wanted


def _origin(seen: plan.Observed) -> tuple[str, datetime]:
    """Return the uid from which the agent's token was derived, and a time that never changes."""
    if seen.warm_pod is not None and seen.warm_pod.spec.claim is not None:
        return seen.warm_pod.metadata.uid, seen.warm_pod.spec.claim.time
    born = seen.pod.metadata.creation_timestamp if seen.pod is not None else None
    return seen.sandbox.metadata.uid, born or seen.now
