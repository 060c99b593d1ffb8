"""Rules across objects, which neither a schema nor a policy can say: pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmsafespace_kube.claims.choice import smaller_than_default
from llmsafespace_kube.claims.profiles import missing_runtime_class, profile_of
from llmsafespace_kube.claims.runtimes import Resolved, label, resolve
from llmsafespace_kube.resources.quantities import number
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

_NAMED = 5  # pools, in one message


class Verdict(msgspec.Struct, frozen=True):
    """`refusal` says why not and what to do; empty, it is allowed. `warnings` are told to whoever asked."""

    refusal: str = ""
    warnings: tuple[str, ...] = ()


def can_be_served(
    spec: SandboxSpec | WarmPoolSpec,
    namespace: str,
    environments: Sequence[RuntimeEnvironment],
    profile: Callable[[str, str], SandboxProfile | None],
    system_namespace: str,
) -> Verdict:
    """Whether a sandbox, or those of a pool, can be as the spec wants them.

    `profile` answers name and namespace. A runtime that is there but not available yet is a warning only,
    as it may have been made a moment ago; so is a runtime class that is not installed yet.
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
    """True for a change that has nothing to do with runtimes and profiles, as scaling: one may be gone."""
    return (new.runtime, new.resources, new.profile_ref) == (old.runtime, old.resources, old.profile_ref)


def can_be_removed(
    name: str, environments: Sequence[RuntimeEnvironment], pools: Iterable[WarmPool]
) -> Verdict:
    """Whether the RuntimeEnvironment of this name may go: not while a WarmPool runs it."""
    users = sorted(
        f"{pool.metadata.namespace}/{pool.metadata.name}"
        for pool in pools
        if pool.metadata.deletion_timestamp is None and name in _runs(pool.spec.runtime, environments)
    )
    if not users:
        return Verdict()
    more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
    named = ", ".join(users[:_NAMED])
    return Verdict(f"WarmPools run it: {named}{more}; delete them or give them another runtime first")


def _served(runtime: str, environments: Sequence[RuntimeEnvironment]) -> tuple[RuntimeEnvironment | str, str]:
    """What serves and a warning about it; text instead of the environment when nothing does."""
    found = resolve(runtime, environments)
    if isinstance(found, Resolved):
        return found.environment, found.warning
    later = resolve(runtime, [_made_available(each) for each in environments])
    return (later.environment, found) if isinstance(later, Resolved) else (found, "")


def _runs(runtime: str, environments: Sequence[RuntimeEnvironment]) -> set[str]:
    """The environments that serve it, now and when all are available again."""
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
