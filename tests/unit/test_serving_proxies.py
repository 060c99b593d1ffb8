"""Whose word about a client's address is believed."""

from __future__ import annotations

import pytest

from llmsafespace_gateway.serving.proxies import TrustedProxies, group, is_loopback, scheme

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("6.6.6.6, 203.0.113.5", "203.0.113.5"),  # the client wrote the first one itself
        ("6.6.6.6, 203.0.113.5, 10.1.2.3", "203.0.113.5"),
        ("203.0.113.5, 10.1.2.3, 192.0.2.7", "203.0.113.5"),
        ("10.9.9.9, 10.1.2.3", "10.9.9.9"),
        ("203.0.113.5:4711", "203.0.113.5"),
        ("2001:db8:2::5", "2001:db8:2::5"),
        ("[2001:db8:2::5]:80, 2001:db8:1::1", "2001:db8:2::5"),
        ("::ffff:203.0.113.5, ::ffff:10.0.0.1", "203.0.113.5"),
        ("nonsense, 10.1.2.3", "10.1.2.3"),
        ("203.0.113.5, nonsense", None),
        ("unknown", None),
        ("", None),
        (None, None),
    ],
)
def test_the_right_most_that_is_no_proxy(header: str | None, client: str | None) -> None:
    assert PROXIES.client(header) == client


def test_who_is_trusted() -> None:
    assert PROXIES.trusts("10.200.0.1")
    assert PROXIES.trusts("::ffff:192.0.2.7")
    assert not PROXIES.trusts("192.0.2.8")
    assert not PROXIES.trusts(None)
    assert TrustedProxies(["unix"]).trusts(None)
    assert not TrustedProxies().trusts("127.0.0.1")
    assert not TrustedProxies()


@pytest.mark.parametrize("text", ["10.0.0.0/99", "proxy.example", "10.0.0", "::/200", "*"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a network"):
        TrustedProxies([text])


@pytest.mark.parametrize(
    ("header", "found"),
    [("https", "https"), ("http, HTTPS", "https"), ("javascript", None), ("", None), (None, None)],
)
def test_the_nearest_proxy_says_the_scheme(header: str | None, found: str | None) -> None:
    assert scheme(header) == found


def test_what_counts_as_one_client() -> None:
    assert group("2001:db8::1") == group("2001:db8::ffff:1") != group("2001:db8:0:1::1")
    assert group("::ffff:192.0.2.1") == group("192.0.2.1") != group("192.0.2.2")
    assert is_loopback("127.5.0.1")
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("192.0.2.1")
