"""Decisions of the egress proxy: names, ports, addresses."""

from __future__ import annotations

import ipaddress

import pytest

from llmsafespace_gateway.backends.base import EgressRule
from llmsafespace_gateway.egress.rules import (
    Rule,
    forbidden_address,
    index_rules,
    matching,
    normal_host,
    to_rules,
    usable,
)


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "168.63.129.16",
        "192.0.0.9",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::",
        "::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::168.63.129.16",
        "2002:0a00:0001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
    ],
)
def test_forbidden(address: str) -> None:
    assert forbidden_address(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "168.63.129.17", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_public(address: str) -> None:
    assert not forbidden_address(ipaddress.ip_address(address))


def test_denied_networks_are_refused_though_public() -> None:
    denied = [ipaddress.ip_network("8.8.8.0/24"), ipaddress.ip_network("2606:4700::/32")]
    assert forbidden_address(ipaddress.ip_address("8.8.8.8"), denied)
    assert forbidden_address(ipaddress.ip_address("::ffff:8.8.8.8"), denied)
    assert forbidden_address(ipaddress.ip_address("2606:4700::1111"), denied)
    assert not forbidden_address(ipaddress.ip_address("1.1.1.1"), denied)


def test_usable_keeps_public_addresses_only() -> None:
    found = ["10.0.0.1", "8.8.8.8", "8.8.8.8", "::1", "fe80::1%eth0"]
    assert usable(found, Rule(domain="example.com")) == ["8.8.8.8"]
    assert usable(found, Rule(domain="index.local", private=True)) == [
        "10.0.0.1",
        "8.8.8.8",
        "::1",
        "fe80::1",
    ]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Example.COM.", "example.com"),
        ("[::1]", "::1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("a_b.example", "a_b.example"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_normal_host(written: str, normal: str) -> None:
    assert normal_host(written) == normal


@pytest.mark.parametrize(
    "written",
    [
        "",
        ".",
        "a..b",
        "-a.example",
        "a b",
        "a/b",
        "a@b",
        "127.1",
        "0x7f.1",
        "2130706433",
        "017700000001",
        "x" * 64,
        "[x]",
    ],
)
def test_no_host(written: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        normal_host(written)


def test_matching() -> None:
    rules = to_rules(
        [EgressRule("Example.com"), EgressRule("*.files.example", (8443,)), EgressRule("192.0.2.7", (443,))]
    )
    assert matching("example.com", 443, rules)
    assert matching("example.com", 80, rules)
    assert not matching("example.com", 22, rules)
    assert not matching("sub.example.com", 443, rules)
    assert not matching("notexample.com", 443, rules)
    assert matching("a.b.files.example", 8443, rules)
    assert not matching("files.example", 8443, rules)
    assert not matching("evilfiles.example", 8443, rules)
    assert matching("192.0.2.7", 443, rules)


def test_a_private_rule_wins_for_its_own_destination_only() -> None:
    rules = (Rule(domain="index.local", ports=(80, 443)), *index_rules(["https://index.local/simple"]))
    found = matching("index.local", 443, rules)
    assert found is not None
    assert found.private
    other = matching("index.local", 80, rules)
    assert other is not None
    assert not other.private


@pytest.mark.parametrize(
    "rule", [EgressRule("*.com"), EgressRule("*.10.0.0.1"), EgressRule("*"), EgressRule("a", (0,))]
)
def test_no_rule(rule: EgressRule) -> None:
    with pytest.raises(ValueError, match=r".*"):
        to_rules([rule])


def test_index_rules() -> None:
    assert {(r.domain, r.ports) for r in index_rules(["https://pypi.org/simple"])} == {
        ("pypi.org", (443,)),
        ("files.pythonhosted.org", (443,)),
    }
    (own,) = index_rules(["http://mirror.local:3141/root/pypi", "file:///srv/wheels", "/srv/wheels"])
    assert (own.domain, own.ports, own.private) == ("mirror.local", (3141,), True)


def test_a_rule_of_the_sandbox_s_own_still_writes_to_a_public_index() -> None:
    """Its owner allowed it: the index's rule takes nothing away."""
    own = Rule(domain="pypi.org")
    rules = [*index_rules(["https://pypi.org/simple", "http://pypi.org/simple"]), own]
    writes = [rule for rule in rules if rule.allows("PUT", True)]
    assert writes == [own]
    assert matching("pypi.org", 80, writes) == own
    assert all(rule.allows("CONNECT", False) for rule in rules)
