"""The network policies of a profile: what its sandboxes reach past the egress proxy."""

from __future__ import annotations

import ipaddress
from typing import Any

from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.resources import names
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_kube.resources.types import NetworkRule, SandboxProfile

COMPONENT = "sandbox-profile"
_PREFIX = "sandboxprofile-"


def policy_name(profile: Key) -> str:
    """Of the policies of a profile; no namespace has a dot in its name."""
    return f"{_PREFIX}{profile[0]}.{profile[1]}"


def profile_of(policy: str) -> Key:
    """Whose policies have this name."""
    namespace, _, name = policy.removeprefix(_PREFIX).partition(".")
    return namespace, name


def cidr_rules(profile: SandboxProfile) -> list[NetworkRule]:
    """Rules with a cidr; those with a domain are the egress proxy's."""
    rules = (rule for policy in profile.spec.network_policies for rule in policy.rules)
    return [rule for rule in rules if rule.cidr is not None]


def bad_cidr(profile: SandboxProfile) -> str | None:
    """A cidr that is none."""
    for rule in cidr_rules(profile):
        try:
            ipaddress.ip_network(rule.cidr or "")
        except ValueError as error:
            return str(error)
    return None


def namespaces(profile: SandboxProfile, settings: Settings) -> set[str]:
    """Where a profile's rules hold: the system's everywhere, another one's in its own namespace only."""
    everywhere = {*settings.pool_namespaces, *settings.sandbox_namespaces}
    own = profile.metadata.namespace
    return everywhere if own == settings.system_namespace else everywhere & {own}


def policy(profile: SandboxProfile) -> dict[str, Any]:
    """Its network policy, the same in each namespace; that everything else is shut is another's matter."""
    meta = profile.metadata
    return {
        "metadata": {"labels": {names.COMPONENT: COMPONENT, names.PROFILE: meta.name}},
        "spec": {
            "podSelector": {
                "matchLabels": {names.COMPONENT: names.SANDBOX_COMPONENT, names.PROFILE: meta.name}
            },
            "policyTypes": ["Egress"],
            "egress": [_egress(rule) for rule in cidr_rules(profile)],
        },
    }


def _egress(rule: NetworkRule) -> dict[str, Any]:
    ports = [{"port": port.port, "protocol": port.protocol} for port in rule.ports]
    found: dict[str, Any] = {"to": [{"ipBlock": {"cidr": rule.cidr}}]}
    return {**found, "ports": ports} if ports else found
