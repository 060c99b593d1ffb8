"""The egress token: only its own sandbox, in its time, with its own rules, and no way to make one up."""

from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.claims import egress_token
from llmsafespace_kube.claims.egress_token import (
    BadToken,
    EgressGrant,
    GrantedRule,
    granted,
    sign,
    verify,
)
from llmsafespace_kube.resources.types import EgressRule, PortRule

KEY = b"e" * 32
GRANT = EgressGrant("sb-1", "10.1.2.3", (GrantedRule("*.example.com", (443,)), GrantedRule("a.org")), 1000.0)

rules = st.builds(
    GrantedRule,
    st.text(max_size=30),
    st.lists(st.integers(1, 65535), max_size=4).map(tuple),
)
grants = st.builds(
    EgressGrant,
    st.text(max_size=40),
    st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None).map(str),
    st.lists(rules, max_size=20).map(tuple),
    st.floats(0, 4e9),
)


def test_a_signed_grant_is_verified() -> None:
    token = sign(KEY, GRANT)
    assert verify(KEY, token, "10.1.2.3", 999.9) == GRANT
    assert set(token) <= {*string.ascii_letters, *string.digits, *"-_."}


@given(grants)
def test_every_grant_survives(grant: EgressGrant) -> None:
    assert verify(KEY, sign(KEY, grant), grant.address, grant.expires - 1) == grant


def test_an_address_has_one_form() -> None:
    assert verify(KEY, sign(KEY, GRANT), "::ffff:10.1.2.3", 0) == GRANT
    six = msgspec.structs.replace(GRANT, address="fd00:0::1")
    assert verify(KEY, sign(KEY, six), "fd00::1", 0).address == "fd00::1"


def test_another_sandboxs_token_is_refused() -> None:
    with pytest.raises(BadToken, match="address"):
        verify(KEY, sign(KEY, GRANT), "10.1.2.4", 0)


@pytest.mark.parametrize("now", [1000.0, 1000.1, float("inf"), float("nan")])
def test_an_expired_token_is_refused(now: float) -> None:
    with pytest.raises(BadToken, match="expired"):
        verify(KEY, sign(KEY, GRANT), "10.1.2.3", now)


@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    token = sign(KEY, GRANT)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda character: character != token[at]))
    with pytest.raises(BadToken):
        verify(KEY, token[:at] + other + token[at + 1 :], "10.1.2.3", 0)


@given(st.text(max_size=200) | st.text(alphabet="1.abcdef0=-_", max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(BadToken):
        verify(KEY, text, "10.1.2.3", 0)


@pytest.mark.parametrize("token", ["", ".", "..", "1..", "1." + "A" * 1_000_000, "1.é.ü", "1.\ud800.x", "\0"])
def test_hostile_text_is_refused(token: str) -> None:
    with pytest.raises(BadToken):
        verify(KEY, token, "10.1.2.3", 0)


@pytest.mark.parametrize("content", ["2.W10", "1.W10", "1.!!", "1.", "1.AAAA", "1.A", ""])
def test_what_another_release_signs_is_refused(content: str) -> None:
    token = f"{content}.{egress_token._mac(KEY, content)}"
    with pytest.raises(BadToken, match=r"version|release"):
        verify(KEY, token, "10.1.2.3", 0)


def test_what_another_key_signed_is_refused() -> None:
    for key in (b"k" * 32, b"l" * 32, b""):
        with pytest.raises(BadToken, match="signed"):
            verify(key, sign(KEY, GRANT), "10.1.2.3", 0)


def test_too_many_rules_are_refused_when_they_are_signed() -> None:
    many = msgspec.structs.replace(GRANT, rules=tuple(GrantedRule("x" * 250) for _ in range(200)))
    with pytest.raises(ValueError, match="fewer destinations"):
        sign(KEY, many)
    usual = msgspec.structs.replace(
        GRANT, rules=tuple(GrantedRule(f"host-{i}.example.com") for i in range(256))
    )
    assert len(verify(KEY, sign(KEY, usual), "10.1.2.3", 0).rules) == 256


def test_no_grant_without_an_address() -> None:
    with pytest.raises(ValueError, match="address"):
        sign(KEY, msgspec.structs.replace(GRANT, address="pod.local"))


def test_the_rules_of_a_sandbox() -> None:
    rules = [EgressRule("a.org", [PortRule(8443), PortRule(80)]), EgressRule("b.org")]
    assert granted(rules) == (GrantedRule("a.org", (8443, 80)), GrantedRule("b.org"))
