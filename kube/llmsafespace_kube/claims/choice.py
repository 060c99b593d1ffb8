"""Which warm pods may serve a request, and in which order to try them: pure functions of what is there."""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from llmsafespace_kube.claims import profiles
from llmsafespace_kube.resources import quantities
from llmsafespace_kube.resources.types import (
    PoolResources,
    ProfileRef,
    Resources,
    RuntimeEnvironment,
    SandboxProfile,
    SandboxSpec,
    WarmPod,
    WarmPodStatus,
    WarmPool,
    WarmPoolSpec,
)

NO_POOL = "there is no warm pool"
_PLAIN = SandboxSpec(runtime="python")
_number = functools.lru_cache(1024)(quantities.number)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a warm pod must be to serve a Sandbox.

    `runtime` is a RuntimeEnvironment's name, `profile_ref` names the profile that holds (with its
    namespace), whether the Sandbox refers to it or not. `warm_pool` names the only pool that may serve;
    without it code that nobody published is not taken. `plain` False: it wants what no pool has.
    """

    runtime: str
    security_level: str
    resources: Resources
    namespace: str
    profile_ref: ProfileRef | None = None
    use_warm_pool: bool = True
    warm_pool: str | None = None
    plain: bool = True


class PoolInUse(msgspec.Struct, frozen=True):
    """A pool as requests see it: what its runtime and profile are, and its free pods."""

    pool: WarmPool
    runtime: str  # the RuntimeEnvironment's name, "" when there is none
    profile_ref: ProfileRef | None
    free: Sequence[WarmPod]


def request_of(
    spec: SandboxSpec, namespace: str, environment: RuntimeEnvironment, profile: SandboxProfile | None
) -> Request:
    """The request of a Sandbox in `namespace`, of which environment and profile have been found."""
    return Request(
        runtime=environment.metadata.name,
        security_level=spec.security_level,
        resources=spec.resources,
        namespace=namespace,
        profile_ref=profiles.reference(profile),
        use_warm_pool=spec.use_warm_pool,
        warm_pool=spec.warm_pool,
        plain=_is_plain(spec),
    )


def is_free(pod: WarmPod) -> bool:
    """True when a claim may be tried."""
    return pod.spec.claim is None and pod.status.phase == "Ready" and pod.metadata.deletion_timestamp is None


def candidates(
    request: Request, claim_id: str, pools: Iterable[PoolInUse], limit: int
) -> list[WarmPod] | str:
    """Up to `limit` free pods that serve, in the order to try them; or why the start is cold, in words.

    The tightest pool comes first, and one of few namespaces before one of all. Within a pool each claim
    has an order of its own (rendezvous hashing), so that claims made at one time do not collide.
    """
    if not request.use_warm_pool:
        return "the request asked for no warm pool"
    if not request.plain:
        return "a security context, filesystem, storage or pinned CPUs of its own"
    allowed = [each for each in pools if _allows(each.pool, request.namespace)]
    misfits = [misfit(request, each) for each in allowed]
    fitting = [each for each, why in zip(allowed, misfits, strict=True) if why is None]
    if not fitting:
        return min((why for why in misfits if why is not None), key=_nearness, default=NO_POOL)
    fitting.sort(key=_tightness)
    found: list[WarmPod] = []
    for each in fitting:
        serving = (pod for pod in each.free if serves(request, pod.status, each.pool))
        found += heapq.nsmallest(limit - len(found), serving, key=_rank(claim_id))
        if len(found) == limit:
            break
    return found or f"the warm pool {fitting[0].pool.metadata.name} was empty"


def misfit(request: Request, in_use: PoolInUse) -> str | None:
    """Why a pool cannot serve a request, in words for the person who asked; None when it can."""
    spec = in_use.pool.spec
    if request.warm_pool not in (None, in_use.pool.metadata.name):
        return f"it is to be of the warm pool {request.warm_pool}"
    if in_use.runtime != request.runtime:
        return f"no warm pool has the runtime {request.runtime}"
    if spec.security_level != request.security_level:
        return f"no warm pool has the security level {request.security_level}"
    if in_use.profile_ref != request.profile_ref:
        wanted = request.profile_ref.name if request.profile_ref is not None else "of none"
        return f"no warm pool has the profile {wanted}"
    if not _fits(request.resources, spec.resources):
        return f"more resources than those of pool {in_use.pool.metadata.name}"
    if request.warm_pool is None and code_of(spec) == "own":
        name = in_use.pool.metadata.name
        return f"the pool {name} preloads its owner's code; ask for it by name (warmPool) to get that"
    return None


def smaller_than_default(given: PoolResources) -> str:
    """Why a pool's pods never serve a request that names no resources; empty when they do."""
    asked = Resources()
    for name, word in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral_storage", "ephemeralStorage")):
        offered, wanted = getattr(given, name), getattr(asked, name)
        if _number(wanted) > _number(offered):
            return (
                f"resources.{word} is {offered}, less than the {wanted} that a sandbox gets when its request "
                "says nothing: only requests for less are served from this pool"
            )
    return ""


def code_of(spec: WarmPoolSpec) -> Literal["none", "own", "published"]:
    """What its pods have preloaded: nothing, code of its owner's choice, or code that was published."""
    if not (spec.preload_packages or spec.preload_scripts):
        return "none"
    return "published" if spec.published else "own"


def named(name: str, namespace: str, pools: Iterable[WarmPool]) -> WarmPool | str:
    """The pool that a Sandbox of this namespace is to be of; or why it cannot, in words."""
    there = [pool for pool in pools if pool.metadata.name == name and _allows(pool, namespace)]
    if not there:
        return f"there is no warm pool {name} that serves the namespace {namespace}"
    return min(there, key=lambda pool: pool.metadata.namespace)


def serves(request: Request, made: WarmPodStatus, pool: WarmPool) -> bool:
    """Whether a pod serves as it was made: its pool may have changed since.

    What was preloaded before its code was published, or no longer is, serves only who names the pool. Pods
    that do not say what they have were made by an operator that did not know: their pool says so.
    """
    code = made.code or code_of(pool.spec)
    approved = code == "none" or (code == "published" and pool.spec.published)
    return (
        (approved or request.warm_pool == pool.metadata.name)
        and made.runtime == request.runtime
        and made.security_level == request.security_level
        and made.profile_ref == request.profile_ref
        and made.resources is not None
        and _fits(request.resources, made.resources)
    )


def _allows(pool: WarmPool, namespace: str) -> bool:
    allowed = pool.spec.allowed_namespaces
    return pool.metadata.deletion_timestamp is None and ("*" in allowed or namespace in allowed)


def _fits(wanted: Resources, given: PoolResources) -> bool:
    return (
        _number(wanted.cpu) <= _number(given.cpu)
        and _number(wanted.memory) <= _number(given.memory)
        and _number(wanted.ephemeral_storage) <= _number(given.ephemeral_storage)
    )


def _is_plain(spec: SandboxSpec) -> bool:
    return (
        spec.security_context == _PLAIN.security_context
        and spec.filesystem == _PLAIN.filesystem
        and not spec.storage.persistent
        and not spec.resources.cpu_pinning
    )


def _tightness(each: PoolInUse) -> tuple[bool, float, float, str, str]:
    spec, meta = each.pool.spec, each.pool.metadata
    shared = "*" in spec.allowed_namespaces
    return shared, _number(spec.resources.cpu), _number(spec.resources.memory), meta.namespace, meta.name


def _rank(claim_id: str) -> Callable[[WarmPod], bytes]:
    def rank(pod: WarmPod) -> bytes:
        return hashlib.blake2b(f"{claim_id}\n{pod.metadata.uid}".encode(), digest_size=8).digest()

    return rank


def _nearness(reason: str) -> int:
    """The reason of the pool that was nearest to fit comes first."""
    for place, word in enumerate(("by name", "resources", "profile", "security level", "runtime")):
        if word in reason:
            return place
    return 5
