"""Somebody who watches the API server himself, over a good road, and sees all that happens there."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.kubernetes.stubs import BOUND, SECOND_BIND
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.resources.kinds import POD, SANDBOX, SECRET, WARMPOD, Kind
from llmsafespace_kube.resources.names import COMPONENT, SANDBOX_COMPONENT, agent_secret
from llmsafespace_kube.resources.types import WarmPod, WarmPodClaim

_OURS = f"{COMPONENT}={SANDBOX_COMPONENT}"


class Witness:
    """Of one pool, which never has more than `maximum` unclaimed WarmPods. `wrong` is what must not be."""

    def __init__(self, client: KubeClient, pools: str, sandboxes: str, maximum: int) -> None:
        self.wrong: list[str] = []
        self.most = 0  # unclaimed WarmPods at one time
        self._client = client
        self._pools = pools
        self._sandboxes = sandboxes
        self._maximum = maximum
        self._claims: dict[str, WarmPodClaim] = {}
        self._free: set[str] = set()
        self._warm_pods: Informer[WarmPod] = Informer(client, WARMPOD, [pools])
        self._warm_pods.on_change(self._changed)

    async def start(self) -> None:
        await self._warm_pods.start()

    async def stop(self) -> None:
        await self._warm_pods.stop()

    def _changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        either = new or old
        assert either is not None
        uid, claim = either.metadata.uid, either.spec.claim
        if self._claims.setdefault(uid, claim) != claim if claim else uid in self._claims:
            self.wrong.append(f"the claim of {either.metadata.name} changed: {self._claims[uid]}, {claim}")
        if new is not None and claim is None and new.metadata.deletion_timestamp is None:
            self._free.add(uid)
        else:
            self._free.discard(uid)
        if len(self._free) > max(self.most, self._maximum):
            self.wrong.append(f"{len(self._free)} unclaimed warm pods, of at most {self._maximum}")
        self.most = max(self.most, len(self._free))

    async def left(self, minimum: int) -> str:
        """What there is beside a full pool and what belongs to it; "" for nothing."""
        warm_pods, _ = await self._client.list(WARMPOD, self._pools)
        sandboxes, _ = await self._client.list(SANDBOX, self._sandboxes)
        ready = {
            each.metadata.name
            for each in warm_pods
            if each.spec.claim is None and each.status.phase == "Ready"
        }
        found = [f"Sandbox {each.metadata.name} {each.status.phase}" for each in sandboxes]
        found += [
            f"WarmPod {each.metadata.name} {each.status.phase}, claim {each.spec.claim}"
            for each in warm_pods
            if each.metadata.name not in ready
        ]
        if len(ready) != minimum:
            found.append(f"{len(ready)} warm pods are ready")
        uids = {each.metadata.name: each.metadata.uid for each in warm_pods}
        wanted: dict[Kind[Any], set[str]] = {POD: ready, SECRET: {agent_secret(uids[name]) for name in ready}}
        for kind, needed in wanted.items():
            names = await self._names(kind)
            found += [f"{kind.kind} {name} of nobody" for name in sorted(names - needed)]
            found += [f"no {kind.kind} {name}" for name in sorted(needed - names)]
        return "; ".join(found)

    async def _names(self, kind: Kind[Any]) -> set[str]:
        """The names of our objects of this kind, in both namespaces."""
        pools, _ = await self._client.list(kind, self._pools, label_selector=_OURS)
        cold, _ = await self._client.list(kind, self._sandboxes, label_selector=_OURS)
        return {each.metadata.name for each in (*pools, *cold)}


def wrong_binds(said: str, served: dict[str, str]) -> list[str]:
    """What must not be in what the agents say of binds: a line `BOUND owner claim` for each."""
    claims, owners = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for line in said.splitlines():
        if line.startswith(BOUND):
            owner, claim = line.removeprefix(BOUND).split()
            claims[owner].add(claim)
            owners[claim].add(owner)
    wrong = [f"the pod of {owner} was bound by {sorted(by)}" for owner, by in claims.items() if len(by) > 1]
    wrong += [f"{claim} bound the pods of {sorted(of)}" for claim, of in owners.items() if len(of) > 1]
    wrong += [f"{sandbox} was never bound" for sandbox in served.values() if sandbox not in owners]
    if SECOND_BIND in said:
        wrong.append(f"a second bind was tried {said.count(SECOND_BIND)} times")
    return wrong
