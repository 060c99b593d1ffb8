"""What there is to be had, as the public APIs list it. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from llmsafespace_gateway.backends.base import Profile, Resources, Runtime
from llmsafespace_gateway.backends.kubernetes import objects
from llmsafespace_kube.claims import runtimes
from llmsafespace_kube.resources import types

_MEASURES = (
    "a pod of its own: not root, no capabilities, no new privileges, a seccomp filter, a read-only root",
    "no service account, no host paths, no host network, no DNS, no route but to the egress proxy",
    "limits on memory, CPU and disk, kept by the kubelet; pods are never used twice",
)
_NETWORK = "HTTP and HTTPS through the egress proxy only: the package index, and what networkAccess lists"
_LEVELS = ("standard", "high", "custom")


def served(environments: Iterable[types.RuntimeEnvironment]) -> list[Runtime]:
    """The runtimes as the public APIs list them, each language and version once."""
    found: dict[str, Runtime] = {}
    for environment in sorted(environments, key=lambda each: (not each.status.available, each.metadata.name)):
        runtime = _runtime(environment)
        found.setdefault(runtime.id, runtime)
    return sorted(found.values(), key=lambda each: each.id)


def _runtime(environment: types.RuntimeEnvironment) -> Runtime:
    spec, status = environment.spec, environment.status
    reason = next((each.message for each in status.conditions if each.status == "False"), "")
    return Runtime(
        id=runtimes.label(environment),
        language=spec.language,
        version=spec.version,
        display_name=f"{spec.language.capitalize()} {spec.version}".strip(),
        languages=(spec.language,),
        packages=tuple(spec.pre_installed_packages),
        available=status.available,
        reason="" if status.available else reason or "the operator has not checked it yet",
    )


def profiles(known: Iterable[types.SandboxProfile]) -> list[Profile]:
    """The security levels, and what other profiles there are, from the system's SandboxProfiles."""
    by_name = {each.metadata.name: each for each in known}
    others = sorted(by_name.keys() - set(_LEVELS))
    return [_profile(name, by_name.get(name)) for name in (*_LEVELS, *others)]


def _profile(name: str, found: types.SandboxProfile | None) -> Profile:
    given = found.spec if found is not None else types.SandboxProfileSpec()
    wanted, config = given.resource_defaults, given.filesystem_config
    kernel = f"a kernel by the runtime class {given.runtime_class_name}"
    domains = [rule.domain for policy in given.network_policies for rule in policy.rules if rule.domain]
    return Profile(
        name=name,
        security_level=given.security_level if found is not None else name,
        description="As its SandboxProfile says."
        if found is not None
        else "No SandboxProfile: the defaults.",
        resource_defaults=objects.resources(wanted.cpu, wanted.memory, wanted.ephemeral_storage)
        if wanted is not None
        else Resources(),
        measures=(*_MEASURES, kernel) if given.runtime_class_name else _MEASURES,
        writable_paths=(
            "/workspace",
            "/tmp",  # noqa: S108  # in the sandbox
            "/home/sandbox",
            "/dev/shm",  # noqa: S108
            *(config.writable_paths if config is not None else ()),
        ),
        network=f"{_NETWORK}, and {', '.join(domains)}" if domains else _NETWORK,
    )
