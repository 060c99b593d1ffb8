"""The NetworkPolicy of a profile: the addresses that its sandboxes reach without the egress proxy."""

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
    """Return the name of a profile's policies. It is unique: a namespace's name has no dot."""
    return f"{_PREFIX}{profile[0]}.{profile[1]}"


def profile_of(policy: str) -> Key:
    """Return the key of the profile whose policies have this name."""
    namespace, _, name = policy.removeprefix(_PREFIX).partition(".")
    return namespace, name


def cidr_rules(profile: SandboxProfile) -> list[NetworkRule]:
    """Return the rules with a cidr. The egress proxy handles rules with a domain."""
    rules = (rule for policy in profile.spec.network_policies for rule in policy.rules)
    return [rule for rule in rules if rule.cidr is not None]


def bad_cidr(profile: SandboxProfile) -> str | None:
    """Return a message about the first invalid cidr, or None."""
    for rule in cidr_rules(profile):
        try:
            ipaddress.ip_network(rule.cidr or "")
        except ValueError as error:
            return str(error)
    return None


def namespaces(profile: SandboxProfile, settings: Settings) -> set[str]:
    """Return the namespaces in which a profile applies: all for a system profile, otherwise its own."""
    everywhere = {*settings.pool_namespaces, *settings.sandbox_namespaces}
    own = profile.metadata.namespace
    return everywhere if own == settings.system_namespace else everywhere & {own}


def policy(profile: SandboxProfile) -> dict[str, Any]:
    """Return the profile's NetworkPolicy, the same in each namespace. The chart's policy denies the rest."""
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
