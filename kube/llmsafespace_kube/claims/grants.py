"""The limits and the egress grant of a sandbox, computed from its Sandbox. Gateway and operator share it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from llmsafespace_kube.claims.egress_token import EgressGrant, granted
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.types import EgressRule, Sandbox, SandboxProfile, SandboxSpec
from llmsafespace_protocol.requests import Limits

IDLE_TIMEOUT = 600.0  # default in seconds, the same as in the REST API
_SLACK = 600.0  # seconds added to a token's lifetime, for wrong clocks and slow starts


def limits_of(spec: SandboxSpec) -> Limits:
    """Return the times after which the agent ends executions and the sandbox."""
    return Limits(
        timeout=float(spec.timeout),
        idle_timeout=IDLE_TIMEOUT if spec.idle_timeout is None else float(spec.idle_timeout),
        max_lifetime=float(spec.max_lifetime),
    )


def ends_at(sandbox: Sandbox) -> datetime | None:
    """Return when the sandbox's lifetime is over; None if it has not started.

    A gateway can shorten the lifetime by the annotation `ends-at`.
    """
    if sandbox.status.start_time is None:
        return None
    ends = sandbox.status.start_time + timedelta(seconds=sandbox.spec.max_lifetime)
    # The annotation may be missing, or be no time, or a time without a zone: then it is ignored.
    with contextlib.suppress(KeyError, ValueError, TypeError):
        ends = min(ends, datetime.fromisoformat(sandbox.metadata.annotations[names.ENDS_AT]))
    return ends


def egress_grant(
    sandbox_id: str, address: str, spec: SandboxSpec, profile: SandboxProfile | None, born: float
) -> EgressGrant:
    """Return the sandbox's egress grant. `born` is its creation time in seconds since the epoch.

    The grant expires a little after the sandbox's maximum lifetime.
    """
    return EgressGrant(
        sandbox_id=sandbox_id,
        address=address,
        rules=granted((*spec.network_access.egress, *_domains(profile))),
        expires=born + spec.max_lifetime + _SLACK,
    )


def _domains(profile: SandboxProfile | None) -> Iterator[EgressRule]:
    """Yield the rules of a profile that apply to the egress proxy. Rules with a cidr are network policies."""
    if profile is None:
        return
    for policy in profile.spec.network_policies:
        for rule in policy.rules:
            if rule.domain is not None:
                yield EgressRule(rule.domain, rule.ports)
