"""Claims a warm pod: a JSON-Patch that sets `spec.claim` of its WarmPod.

The patch tests that the WarmPod is the one that was seen, is Ready and has no claim. The API server applies
patches one after another, so of several claims for one pod only one wins. A claim that loses tries the next
candidate, at most 8 times, and then the start is cold. A claim is idempotent: its id finds the pod that it
has won, also if the answer was lost. The operator frees pods whose claim no Sandbox uses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import Conflict, Invalid, NotFound, Unavailable
from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.choice import PoolInUse, Request, candidates, is_free
from llmsafespace_kube.resources.kinds import WARMPOD
from llmsafespace_kube.resources.types import NamedObject, WarmPod, WarmPodClaim, WarmPool

log = logging.getLogger(__name__)

TRIES = 8
_CLAIM = "claim"  # index: by claim id
_FREE = "free"  # index: by pool


class Claims:
    """Makes claims for one process. Create it before the informers start, because it adds indexes to them."""

    def __init__(
        self,
        client: KubeClient,
        catalogue: Catalogue,
        warm_pods: Informer[WarmPod],
        warm_pools: Informer[WarmPool],
    ) -> None:
        self._client = client
        self._catalogue = catalogue
        self._warm_pods = warm_pods
        self._warm_pools = warm_pools
        self._tried: set[str] = set()  # uids of pods that look free, but are being claimed or already taken
        warm_pods.index(_CLAIM, _claim_id)
        warm_pods.index(_FREE, _free_in)
        warm_pods.on_change(self._changed)

    async def claim(
        self,
        request: Request,
        sandbox: NamedObject,
        claim_id: str,
        trying: Callable[[WarmPod], None] = lambda pod: None,
    ) -> WarmPod | str:
        """Claim a warm pod for `sandbox`; return it, or text: why the start is cold.

        The same `claim_id` gets the same pod again. Raises KubeError if the API server does not answer. A pod
        may have been claimed then: a claim with the same id finds it; otherwise the operator frees it.
        `trying(pod)` is called before each try.
        """
        mine = self.claimed(claim_id)
        if mine is not None:
            return mine
        tries = TRIES
        while True:
            found = candidates(request, claim_id, self._pools(), tries)
            if isinstance(found, str):
                return found
            for pod in found:
                trying(pod)
                won = await self._take(pod, WarmPodClaim(claim_id, sandbox, datetime.now(UTC)))
                if won is not None:
                    return won
                tries -= 1
                if not tries:
                    return "other sandboxes took the warm pods first"

    def claimed(self, claim_id: str) -> WarmPod | None:
        """Return the warm pod of this claim, if the informer shows it."""
        living = (
            pod
            for pod in self._warm_pods.by_index(_CLAIM, claim_id)
            if pod.metadata.deletion_timestamp is None
        )
        return min(living, key=lambda pod: pod.metadata.uid, default=None)

    def _pools(self) -> Iterator[PoolInUse]:
        for pool in self._warm_pools.items():
            free = self._warm_pods.by_index(_FREE, _key(pool.metadata.name, pool.metadata.namespace))
            yield self._catalogue.in_use(pool, [pod for pod in free if pod.metadata.uid not in self._tried])

    async def _take(self, pod: WarmPod, claim: WarmPodClaim) -> WarmPod | None:
        """Try to claim the pod; return it with the claim, or None if another claim has it."""
        uid = pod.metadata.uid
        self._tried.add(uid)
        try:
            won = await self._patch(pod, claim)
        except BaseException:
            self._tried.discard(uid)
            raise
        if won is not None:
            self._warm_pods.observe(won)
        return won

    async def _patch(self, pod: WarmPod, claim: WarmPodClaim) -> WarmPod | None:
        meta = pod.metadata
        for last in (False, True):
            try:
                taken = await self._client.patch(
                    WARMPOD, meta.name, _claiming(meta.uid, claim), meta.namespace
                )
            except (Invalid, Conflict, NotFound) as error:
                log.debug("the warm pod %s could not be claimed: %s", meta.name, error)
                return await self._own(pod, claim) if last else None
            except Unavailable:
                if last:
                    raise
                continue  # the patch may have been applied: repeat it; if that fails, look for our claim
            return taken if taken.metadata.deletion_timestamp is None else None
        return None

    async def _own(self, pod: WarmPod, claim: WarmPodClaim) -> WarmPod | None:
        """Return the pod if an earlier try of the same claim has won it and its answer was lost."""
        try:
            now = await self._client.get(WARMPOD, pod.metadata.name, pod.metadata.namespace)
        except NotFound:
            return None
        ours = now.spec.claim is not None and now.spec.claim.claim_id == claim.claim_id
        return now if ours and now.metadata.uid == pod.metadata.uid else None

    def _changed(self, old: WarmPod | None, new: WarmPod | None) -> None:
        """Forget a tried pod once the informer shows that it is not free."""
        if old is not None and (new is None or not is_free(new)):
            self._tried.discard(old.metadata.uid)


def _claiming(uid: str, claim: WarmPodClaim) -> list[dict[str, Any]]:
    """The patch fails unless the pod is the one that was seen, Ready and unclaimed (absent equals null)."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": "/status/phase", "value": "Ready"},
        {"op": "test", "path": "/spec/claim", "value": None},
        {"op": "add", "path": "/spec/claim", "value": msgspec.to_builtins(claim)},
    ]


def _claim_id(pod: WarmPod) -> list[str]:
    return [pod.spec.claim.claim_id] if pod.spec.claim is not None else []


def _free_in(pod: WarmPod) -> list[str]:
    return [_key(pod.spec.pool_ref.name, pod.spec.pool_ref.namespace)] if is_free(pod) else []


def _key(pool: str, namespace: str) -> str:
    return f"{namespace}/{pool}"
