"""Between the cluster's objects and what the rest of the gateway works with. Pure functions."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import (
    Claim,
    EgressRule,
    Ended,
    Place,
    Resources,
    SandboxSpec,
    Start,
    Stranger,
)
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.claims import grants
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_protocol.environment import early
from llmsafespace_protocol.limits import MAX_DURATION
from llmsafespace_protocol.quantities import format_cores, format_size, number

_ABOUT = 5.0  # seconds by which clocks and answers may differ
_RUNTIME_CLASS = "its runtime class's"  # gVisor, for one, keeps code in by its kernel and filters no calls


# -- to the cluster ---------------------------------------------------------------------------------------


def sandbox_spec(spec: SandboxSpec, pool: str | None = None) -> types.SandboxSpec:
    """What a Sandbox object says of a request; durations that it cannot express are rounded up.

    `pool` is the WarmPool's name where the request names one: its own may be the gateway's only.

    Raises ApiError(invalid_request) for what the API server would refuse after a warm pod was taken.
    """
    limits = spec.limits
    timeout = limits.timeout if limits.timeout is not None else MAX_DURATION
    made = types.SandboxSpec(
        runtime=spec.runtime.strip().lower(),
        security_level=spec.security_level,  # type: ignore[arg-type]  # the REST API's words are these
        timeout=min(MAX_DURATION, max(1, math.ceil(timeout))),
        resources=types.Resources(
            cpu=format_cores(spec.resources.cpu),
            memory=format_size(spec.resources.memory),
            ephemeral_storage=format_size(spec.resources.storage),
        ),
        network_access=types.NetworkAccess(
            egress=[
                types.EgressRule(rule.domain, [types.PortRule(port) for port in rule.ports])
                for rule in spec.egress
            ]
        ),
        user=spec.owner,
        use_warm_pool=spec.use_warm_pool,
        warm_pool=pool,
        idle_timeout=math.ceil(limits.idle_timeout) if limits.idle_timeout is not None else None,
        max_lifetime=max(1, math.ceil(limits.max_lifetime)),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(made), types.SandboxSpec)
    except msgspec.ValidationError as error:
        raise ApiError("invalid_request", f"a Sandbox cannot be like that: {error}") from error


def warm_sandbox(spec: SandboxSpec, namespace: str, pod: types.WarmPod) -> types.Sandbox:
    """The Sandbox of a claimed warm pod."""
    made = _sandbox(spec, namespace, pod.spec.pool_ref.name if spec.warm_pool is not None else None)
    made.spec.warm_pod = types.WarmPodClaimed(pod.metadata.name, pod.metadata.namespace, spec.sandbox_id)
    return made


def cold_sandbox(spec: SandboxSpec, namespace: str, reason: str, pool: str | None = None) -> types.Sandbox:
    """The Sandbox for which the operator starts a pod, with what the WarmPool `pool` preloads."""
    made = _sandbox(spec, namespace, pool)
    made.spec.use_warm_pool = False
    made.metadata.annotations[names.COLD_REASON] = reason
    return made


def _sandbox(spec: SandboxSpec, namespace: str, pool: str | None) -> types.Sandbox:
    metadata = Metadata(
        name=spec.sandbox_id,
        namespace=namespace,
        labels={names.TENANT: spec.tenant, names.SANDBOX_ID: spec.sandbox_id},
        annotations={},
        finalizers=[names.SANDBOX_FINALIZER],
    )
    return types.Sandbox(metadata=metadata, spec=sandbox_spec(spec, pool))


# -- from the cluster -------------------------------------------------------------------------------------


def public_id(sandbox: types.Sandbox) -> str:
    """Its id in the public APIs."""
    return names.sandbox_id(sandbox.metadata.name, sandbox.metadata.uid)


def end_of(sandbox: types.Sandbox) -> Ended | None:
    """How it ended, None while it lives or starts. One that is being deleted has ended."""
    status = sandbox.status
    if status.end:
        return Ended(sandbox_id=public_id(sandbox), end=status.end, message=status.message)
    if sandbox.metadata.deletion_timestamp is not None:
        return Ended(sandbox_id=public_id(sandbox), end="terminated", message="its Sandbox was deleted")
    return None


def news_of(old: types.Sandbox | None, new: types.Sandbox | None) -> Ended | None:
    """The end that a change tells of, when none was told before."""
    if old is not None and end_of(old) is not None:
        return None
    if new is not None:
        return end_of(new)
    if old is None:
        return None
    return Ended(sandbox_id=public_id(old), end="terminated", message="its Sandbox was deleted")


def runs(sandbox: types.Sandbox) -> bool:
    """True when its pod is there; for one that no gateway made: when it is bound."""
    status = sandbox.status
    return status.phase == "Running" and bool(status.pod_ip) and end_of(sandbox) is None


def is_decided(sandbox: types.Sandbox) -> bool:
    """Whether it is known where it runs, or how it ended."""
    return bool(warm_pod_of(sandbox) or sandbox.status.pod_ip or end_of(sandbox))


def is_shortened(sandbox: types.Sandbox, seconds: float) -> bool:
    """Whether `seconds` from now is earlier than the end it has, by more than clocks and answers differ."""
    ends = grants.ends_at(sandbox)
    if ends is None:  # the operator has not written yet when it began: its whole life is before it
        return sandbox.spec.max_lifetime - seconds > _ABOUT
    return (ends - datetime.now(UTC)).total_seconds() - seconds > _ABOUT


def is_there(sandbox: types.Sandbox) -> bool:
    """Whether its pod exists and it has not ended."""
    return end_of(sandbox) is None and bool(warm_pod_of(sandbox) or sandbox.status.pod_ip)


def is_stranger(sandbox: types.Sandbox) -> bool:
    """Whether somebody else made it and the operator has bound it."""
    return runs(sandbox) and not names.made_by_gateway(sandbox.metadata.name)


def warm_pod_of(sandbox: types.Sandbox) -> types.NamedObject | None:
    """The WarmPod that a Sandbox says it has, None for a cold start."""
    if not names.made_by_gateway(sandbox.metadata.name):
        return sandbox.status.warm_pod_ref
    named = sandbox.spec.warm_pod
    return types.NamedObject(named.name, named.namespace) if named is not None else None


def has(sandbox: types.Sandbox, pod: types.WarmPod) -> bool:
    """Whether the WarmPod says so too: only that counts."""
    claim, meta = pod.spec.claim, sandbox.metadata
    return (
        claim is not None
        and claim.claim_id == public_id(sandbox)
        and claim.sandbox == types.NamedObject(meta.name, meta.namespace)
    )


def place(sandbox: types.Sandbox) -> Place:
    """It, as the gateway's records need it."""
    born = sandbox.status.start_time or sandbox.metadata.creation_timestamp
    return Place(
        sandbox_id=public_id(sandbox),
        runtime=sandbox.status.runtime or sandbox.spec.runtime,
        started_at=born.timestamp() if born is not None else 0.0,
    )


def is_new_stranger(old: types.Sandbox | None, new: types.Sandbox | None) -> bool:
    """Whether this change made it one."""
    return new is not None and is_stranger(new) and (old is None or not is_stranger(old))


def stranger(sandbox: types.Sandbox, tenant: str, isolation: dict[str, Any]) -> Stranger:
    """A Sandbox that no gateway made, described as if one had."""
    spec, status = sandbox.spec, sandbox.status
    public = public_id(sandbox)
    runtime = status.runtime or spec.runtime
    wanted = spec.resources
    return Stranger(
        spec=SandboxSpec(
            sandbox_id=public,
            runtime=spec.runtime,
            owner=spec.user or "",
            tenant=tenant,
            security_level=spec.security_level,
            resources=resources(wanted.cpu, wanted.memory, wanted.ephemeral_storage),
            egress=tuple(
                EgressRule(rule.domain, tuple(port.port for port in rule.ports))
                for rule in spec.network_access.egress
            ),
            use_warm_pool=spec.use_warm_pool,
            limits=grants.limits_of(spec),
        ),
        claim=Claim(
            sandbox_id=public,
            runtime=runtime,
            languages=(runtime.partition(":")[0],),
            start=Start(kind=status.start_kind or "cold", reason=status.start_reason),
            isolation=isolation,
        ),
        context_id=names.context_id(sandbox.metadata.uid),
        started_at=status.start_time.timestamp() if status.start_time is not None else 0.0,
    )


def resources(cpu: str, memory: str, storage: str) -> Resources:
    """Quantities in cores and bytes."""
    return Resources(cpu=number(cpu), memory=int(number(memory)), storage=int(number(storage)))


def warnings(warning: str, env: dict[str, str]) -> tuple[str, ...]:
    """What differs from what was asked for."""
    needed = ", ".join(sorted(early(env)))
    late = (
        f"{needed}: works from a process's start only, so a new kernel was started instead of the parked one"
    )
    return tuple(each for each in (warning, late if needed else "") if each)


def isolation(
    profile: types.SandboxProfile | None,
    security_level: str,
    limits: types.PoolResources | types.Resources,
    egress: bool,
) -> dict[str, Any]:
    """What is in force for a sandbox, truthfully."""
    given = profile.spec if profile is not None else types.SandboxProfileSpec()
    allowed = resources(limits.cpu, limits.memory, limits.ephemeral_storage)
    return {
        "backend": "kubernetes",
        "securityLevel": security_level,
        "profile": profile.metadata.name if profile is not None else None,
        "runtimeClassName": given.runtime_class_name,
        "kernel": _RUNTIME_CLASS if given.runtime_class_name else "its node's, shared",
        "userNamespace": False,
        "seccomp": _RUNTIME_CLASS if given.runtime_class_name else given.seccomp_profile or "RuntimeDefault",
        "noNewPrivileges": True,
        "readOnlyRoot": True,
        "network": "egress proxy" if egress else "none",
        "limits": {
            "memory": {"bytes": allowed.memory, "by": "kubelet"},
            "storage": {"bytes": allowed.storage, "by": "kubelet"},
            "cpu": {"cores": allowed.cpu, "by": "kubelet"},
        },
    }
