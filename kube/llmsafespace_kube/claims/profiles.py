"""Which SandboxProfile holds for a Sandbox or WarmPool."""

from __future__ import annotations

from collections.abc import Callable

from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.types import ProfileRef, SandboxProfile


def profile_of(
    profile_ref: ProfileRef | None,
    security_level: str,
    own_namespace: str,
    system_namespace: str,
    get: Callable[[str, str], SandboxProfile | None],
) -> SandboxProfile | str | None:
    """The profile that is referred to, otherwise the system's of the security level's name, if there is one.

    Text says why a profile that is referred to cannot be had. `get` takes name and namespace.
    """
    if profile_ref is None:
        return get(security_level, system_namespace)
    namespace = profile_ref.namespace or own_namespace
    found = get(profile_ref.name, namespace)
    if found is None:
        return f"there is no SandboxProfile {profile_ref.name} in the namespace {namespace}"
    return found


def missing_runtime_class(profile: SandboxProfile | None) -> str:
    """Why no pod can be made with a profile, as the operator found; empty when it found nothing."""
    for one in profile.status.conditions if profile is not None else ():
        if one.status == "False" and one.reason == names.NO_RUNTIME_CLASS:
            return f"{one.message}, which this securityLevel needs: ask for another, or have it installed"
    return ""


def reference(profile: SandboxProfile | None) -> ProfileRef | None:
    """How a WarmPod's status names the profile that its pod was made with."""
    return ProfileRef(profile.metadata.name, profile.metadata.namespace) if profile is not None else None
