"""Which warm pods may serve a request, and in which order to try them: pure functions.

A pod serves a request if its pool allows the namespace, if runtime, security level and profile are equal, and
if its resources suffice. Code that a pool preloads runs for other users only if the pool is published. If no
pod serves, the functions return the reason as text, for the person who made the request.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from llmsafespace_kube.claims import profiles
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
from llmsafespace_protocol import quantities

NO_POOL = "there is no warm pool"
_PLAIN = SandboxSpec(runtime="python")
_number = functools.lru_cache(1024)(quantities.number)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a Sandbox requires of a warm pod.

    `runtime` is the name of a RuntimeEnvironment. `profile_ref` names the profile that applies, with its
    namespace, also if the Sandbox does not refer to it. If `warm_pool` is set, only that pool may serve;
    otherwise pools with unpublished code may not. `plain` is False if the Sandbox has settings that no pool
    offers.
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
    """A pool with its runtime, its profile and its free pods."""

    pool: WarmPool
    runtime: str  # the RuntimeEnvironment's name, "" if it does not exist
    profile_ref: ProfileRef | None
    free: Sequence[WarmPod]


def request_of(
    spec: SandboxSpec, namespace: str, environment: RuntimeEnvironment, profile: SandboxProfile | None
) -> Request:
    """Return the request of a Sandbox in `namespace`, with the environment and profile found for it."""
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
    """Whether the pod is ready and not claimed."""
    return pod.spec.claim is None and pod.status.phase == "Ready" and pod.metadata.deletion_timestamp is None


def candidates(
    request: Request, claim_id: str, pools: Iterable[PoolInUse], limit: int
) -> list[WarmPod] | str:
    """Return up to `limit` free pods that serve, in the order to try them; or text: why the start is cold.

    Pools for named namespaces come before pools for all, and smaller pods before larger ones. Within a pool
    each claim has its own order (rendezvous hashing), so that simultaneous claims rarely try the same pod.
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
    """Return text that says why a pool cannot serve a request; None if it can."""
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
    """Return text that says why a pool cannot serve requests with default resources; "" if it can."""
    default = Resources()
    for name, word in (("cpu", "cpu"), ("memory", "memory"), ("ephemeral_storage", "ephemeralStorage")):
        offered, wanted = getattr(given, name), getattr(default, name)
        if _number(wanted) > _number(offered):
            return (
                f"resources.{word} is {offered}, less than a sandbox's default of {wanted}: "
                "this pool serves only requests that ask for less than the default"
            )
    return ""


def code_of(spec: WarmPoolSpec) -> Literal["none", "own", "published"]:
    """Return whose code the pool preloads: none, its owner's own code, or published code."""
    if not (spec.preload_packages or spec.preload_scripts):
        return "none"
    return "published" if spec.published else "own"


def named(name: str, namespace: str, pools: Iterable[WarmPool]) -> WarmPool | str:
    """Return the pool of this name that serves the namespace; or text: why there is none."""
    found = [pool for pool in pools if pool.metadata.name == name and _allows(pool, namespace)]
    if not found:
        return f"there is no warm pool {name} that serves the namespace {namespace}"
    return min(found, key=lambda pool: pool.metadata.namespace)


def serves(request: Request, made: WarmPodStatus, pool: WarmPool) -> bool:
    """Whether a pod serves a request. Its recorded properties count, as its pool may have changed since.

    Preloaded code runs for users who do not name the pool only if it was published when the pod was made and
    the pool is still published. Pods of an old operator do not record `code`: the pool's is used.
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
    """Sort key: the reason of the pool that came closest to fitting comes first."""
    for place, word in enumerate(("by name", "resources", "profile", "security level", "runtime")):
        if word in reason:
            return place
    return 5
