"""The make of a pool's pods: runtime, profile and revision, recorded in each pod that is created from it.

A pool can change after a pod was created. The revision, a hash of everything that shapes a pod, shows which
pods are outdated.
"""

from __future__ import annotations

import hashlib

import msgspec

from llmsafespace_kube.claims import profiles
from llmsafespace_kube.claims.catalogue import Catalogue
from llmsafespace_kube.claims.choice import code_of
from llmsafespace_kube.resources.kinds import WARMPOD
from llmsafespace_kube.resources.kubernetes import Pod
from llmsafespace_kube.resources.types import (
    RuntimeEnvironment,
    SandboxProfile,
    WarmPod,
    WarmPodStatus,
    WarmPool,
)
from llmsafespace_operator.pods.build import Recipe
from llmsafespace_operator.pods.made_as import MADE_AS, made_as


class Make(msgspec.Struct, frozen=True):
    """A pool's present runtime and profile. Pods with equal revisions are alike."""

    environment: RuntimeEnvironment
    profile: SandboxProfile | None
    revision: str


def make_of(pool: WarmPool, catalogue: Catalogue) -> Make | str:
    """Return the make of the pool's next pod; or text: why none can be created."""
    spec = pool.spec
    resolved = catalogue.runtime(spec.runtime)
    if isinstance(resolved, str):
        return resolved
    profile = catalogue.profile(spec.profile_ref, spec.security_level, pool.metadata.namespace)
    if isinstance(profile, str):
        return profile
    if missing := profiles.missing_runtime_class(profile):
        return missing
    return Make(resolved.environment, profile, _revision(pool, resolved.environment, profile))


def recipe(warm_pod: WarmPod, pool: WarmPool, make: Make) -> Recipe:
    """Return the recipe for the pod of a WarmPod."""
    spec = pool.spec
    return Recipe(
        kind=WARMPOD,
        owner=warm_pod.metadata,
        image=make.environment.spec.image,
        resources=spec.resources,
        security_level=spec.security_level,
        profile=make.profile,
        pool=pool.metadata.name,
        preload_packages=spec.preload_packages,
        preload_scripts=spec.preload_scripts,
        annotations={MADE_AS: msgspec.json.encode(_known(pool, make)).decode()},
    )


def ready(pod: Pod) -> WarmPodStatus:
    """Return the status of a WarmPod whose pod is ready."""
    return msgspec.structs.replace(
        made_as(pod),
        phase="Ready",
        pod_name=pod.metadata.name,
        pod_namespace=pod.metadata.namespace,
        pod_ip=pod.status.pod_ip,
        node_name=pod.spec.node_name,
    )


def _known(pool: WarmPool, make: Make) -> WarmPodStatus:
    return WarmPodStatus(
        runtime=make.environment.metadata.name,
        security_level=pool.spec.security_level,
        resources=pool.spec.resources,
        profile_ref=profiles.reference(make.profile),
        revision=make.revision,
        code=code_of(pool.spec),
    )


def _revision(pool: WarmPool, environment: RuntimeEnvironment, profile: SandboxProfile | None) -> str:
    spec = pool.spec
    parts = (
        environment.metadata.name,
        environment.spec.image,
        profiles.reference(profile),
        profile.spec if profile is not None else None,
        spec.security_level,
        spec.resources,
        spec.preload_packages,
        spec.preload_scripts,
        code_of(spec),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]
