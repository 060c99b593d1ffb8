"""Which runtimes and profiles exist, from the informers' caches."""

from __future__ import annotations

from llmsafespace_kube.api.informer import Informer
from llmsafespace_kube.claims import profiles, runtimes
from llmsafespace_kube.claims.choice import PoolInUse
from llmsafespace_kube.claims.runtimes import Resolved
from llmsafespace_kube.resources.types import (
    ProfileRef,
    RuntimeEnvironment,
    SandboxProfile,
    WarmPod,
    WarmPool,
)


class Catalogue:
    """Finds the runtime and the profile that a Sandbox or a WarmPool names."""

    def __init__(
        self,
        environments: Informer[RuntimeEnvironment],
        sandbox_profiles: Informer[SandboxProfile],
        system_namespace: str,
    ) -> None:
        self._environments = environments
        self._profiles = sandbox_profiles
        self._system_namespace = system_namespace

    def runtime(self, requested: str) -> Resolved | str:
        """Find the runtime that serves `requested`; see runtimes.resolve."""
        return runtimes.resolve(requested, self._environments.items())

    def profile(
        self, profile_ref: ProfileRef | None, security_level: str, namespace: str
    ) -> SandboxProfile | str | None:
        """Find the profile; see profiles.profile_of. `namespace` is that of the object that refers to it."""
        return profiles.profile_of(
            profile_ref, security_level, namespace, self._system_namespace, self._profiles.get
        )

    def in_use(self, pool: WarmPool, free: list[WarmPod]) -> PoolInUse:
        """Return the pool with runtime, profile and free pods; no pods if runtime or profile is missing."""
        spec = pool.spec
        resolved = self.runtime(spec.runtime)
        profile = self.profile(spec.profile_ref, spec.security_level, pool.metadata.namespace)
        if isinstance(resolved, str) or isinstance(profile, str):
            return PoolInUse(pool, "", None, ())
        return PoolInUse(pool, resolved.environment.metadata.name, profiles.reference(profile), free)
