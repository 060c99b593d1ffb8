"""Which SandboxProfile applies to a Sandbox or WarmPool."""

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
    """Return the profile that applies, text if `profile_ref` names a missing one, or None for no profile.

    Without `profile_ref` it is the profile in the system namespace whose name is the security level, if it
    exists. `get` takes name and namespace.
    """
    if profile_ref is None:
        return get(security_level, system_namespace)
    namespace = profile_ref.namespace or own_namespace
    found = get(profile_ref.name, namespace)
    if found is None:
        return f"there is no SandboxProfile {profile_ref.name} in the namespace {namespace}"
    return found


def missing_runtime_class(profile: SandboxProfile | None) -> str:
    """Return text if the operator found that the profile's RuntimeClass is missing; otherwise ""."""
    for one in profile.status.conditions if profile is not None else ():
        if one.status == "False" and one.reason == names.NO_RUNTIME_CLASS:
            return f"{one.message}, which this securityLevel needs: ask for another, or have it installed"
    return ""


def reference(profile: SandboxProfile | None) -> ProfileRef | None:
    """Return the reference to a profile, as a WarmPod's status records it."""
    return ProfileRef(profile.metadata.name, profile.metadata.namespace) if profile is not None else None
