"""What a sandbox is bound with, from what its Sandbox says: one account for gateway and operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from llmsafespace_kube.claims.egress_token import EgressGrant, granted
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.types import EgressRule, Sandbox, SandboxProfile, SandboxSpec
from llmsafespace_protocol.requests import Limits

IDLE_TIMEOUT = 600.0  # seconds, of a Sandbox that names none: as in the REST API
_SLACK = 600.0  # seconds that a token outlives its sandbox's longest life, for clocks and slow starts


def limits_of(spec: SandboxSpec) -> Limits:
    """When its agent ends executions and itself."""
    return Limits(
        timeout=float(spec.timeout),
        idle_timeout=IDLE_TIMEOUT if spec.idle_timeout is None else float(spec.idle_timeout),
        max_lifetime=float(spec.max_lifetime),
    )


def ends_at(sandbox: Sandbox) -> datetime | None:
    """When its life is over, None when nobody knows when it began. A gateway may have shortened it."""
    if sandbox.status.start_time is None:
        return None
    ends = sandbox.status.start_time + timedelta(seconds=sandbox.spec.max_lifetime)
    with contextlib.suppress(
        KeyError, ValueError, TypeError
    ):  # not a time, or one without a zone: of somebody else
        ends = min(ends, datetime.fromisoformat(sandbox.metadata.annotations[names.ENDS_AT]))
    return ends


def egress_grant(
    sandbox_id: str, address: str, spec: SandboxSpec, profile: SandboxProfile | None, born: float
) -> EgressGrant:
    """What it may reach from `address`, for as long as it can live; `born` is in seconds since the epoch."""
    return EgressGrant(
        sandbox_id=sandbox_id,
        address=address,
        rules=granted((*spec.network_access.egress, *_domains(profile))),
        expires=born + spec.max_lifetime + _SLACK,
    )


def _domains(profile: SandboxProfile | None) -> Iterator[EgressRule]:
    """Rules of a profile that go through the egress proxy; those with a cidr are network policies."""
    if profile is None:
        return
    for policy in profile.spec.network_policies:
        for rule in policy.rules:
            if rule.domain is not None:
                yield EgressRule(rule.domain, rule.ports)
