"""Admission rules that depend on other objects, which a schema or policy cannot check: pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmsafespace_kube.claims.choice import smaller_than_default
from llmsafespace_kube.claims.profiles import missing_runtime_class, profile_of
from llmsafespace_kube.claims.runtimes import Resolved, label, resolve
from llmsafespace_kube.resources.types import (
    PoolResources,
    Resources,
    RuntimeEnvironment,
    RuntimeEnvironmentStatus,
    SandboxProfile,
    SandboxSpec,
    WarmPool,
    WarmPoolSpec,
)
from llmsafespace_protocol.quantities import number

_NAMED = 5  # maximum number of pools that a message names


class Verdict(msgspec.Struct, frozen=True):
    """The decision about a request. It is allowed if `refusal` is empty.

    `refusal` says why not and what to do. The API server shows `warnings` to the client.
    """

    refusal: str = ""
    warnings: tuple[str, ...] = ()


def can_be_served(
    spec: SandboxSpec | WarmPoolSpec,
    namespace: str,
    environments: Sequence[RuntimeEnvironment],
    profile: Callable[[str, str], SandboxProfile | None],
    system_namespace: str,
) -> Verdict:
    """Whether the runtime, the resources and the profile of a Sandbox or WarmPool exist and fit together.

    `profile` takes name and namespace. A runtime that exists and is not available gives only a warning,
    because it may have been created a moment ago; the same holds for a missing RuntimeClass.
    """
    warnings: list[str] = []
    found, warning = _served(spec.runtime, environments)
    if isinstance(found, str):
        return Verdict(found)
    refusal = _too_little(spec.resources, found)
    if not refusal:
        chosen = profile_of(spec.profile_ref, spec.security_level, namespace, system_namespace, profile)
        refusal = chosen if isinstance(chosen, str) else ""
        warnings.append(missing_runtime_class(chosen) if not isinstance(chosen, str) else "")
    if isinstance(spec, WarmPoolSpec):
        warnings.append(smaller_than_default(spec.resources))
    return Verdict(refusal, tuple(each for each in (warning, *warnings) if each))


def wants_the_same(new: WarmPoolSpec, old: WarmPoolSpec) -> bool:
    """Whether a change leaves runtime, resources and profile as they are.

    Such a change (scaling, for example) is allowed even if the runtime does not exist any more.
    """
    return (new.runtime, new.resources, new.profile_ref) == (old.runtime, old.resources, old.profile_ref)


def can_be_removed(
    name: str, environments: Sequence[RuntimeEnvironment], pools: Iterable[WarmPool]
) -> Verdict:
    """Whether the RuntimeEnvironment of this name may be deleted: not while a WarmPool uses it."""
    users = sorted(
        f"{pool.metadata.namespace}/{pool.metadata.name}"
        for pool in pools
        if pool.metadata.deletion_timestamp is None and name in _runs(pool.spec.runtime, environments)
    )
    if not users:
        return Verdict()
    more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    named = ", ".join(users[:_NAMED])
    return Verdict(f"WarmPools use it: {named}{more}; delete them or give them another runtime first")


def _served(runtime: str, environments: Sequence[RuntimeEnvironment]) -> tuple[RuntimeEnvironment | str, str]:
    """Return the environment that serves and a warning, or text (why none serves) and ""."""
    found = resolve(runtime, environments)
    if isinstance(found, Resolved):
        return found.environment, found.warning
    later = resolve(runtime, [_made_available(each) for each in environments])
    return (later.environment, found) if isinstance(later, Resolved) else (found, "")


def _runs(runtime: str, environments: Sequence[RuntimeEnvironment]) -> set[str]:
    """Return the names of the environments that serve `runtime` now, or would if all were available."""
    all_available = [_made_available(each) for each in environments]
    found = [resolve(runtime, each) for each in (environments, all_available)]
    return {each.environment.metadata.name for each in found if isinstance(each, Resolved)}


def _made_available(environment: RuntimeEnvironment) -> RuntimeEnvironment:
    return msgspec.structs.replace(environment, status=RuntimeEnvironmentStatus(available=True))


def _too_little(resources: Resources | PoolResources, environment: RuntimeEnvironment) -> str:
    needs = environment.spec.resource_requirements
    if needs is None:
        return ""
    for what, wanted, least in (
        ("cpu", resources.cpu, needs.min_cpu),
        ("memory", resources.memory, needs.min_memory),
    ):
        if least is not None and number(wanted) < number(least):
            return (
                f"{label(environment)} needs {what} of at least {least}: raise resources.{what} from {wanted}"
            )
    return ""
