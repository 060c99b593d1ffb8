"""What a sandbox may reach, as a token: signed at bind, carried by the agent, checked by the egress proxy.

`1.<payload>.<mac>`: the payload is base64url JSON, the mac an HMAC over all before it. The token says nothing
that its sandbox may not know, and is of use from the sandbox's own address only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable

import msgspec

from llmsafespace_kube.resources.types import EgressRule

MAX_TOKEN = 32 * 1024  # characters
_VERSION = "1"


class BadToken(ValueError):
    """The token grants nothing; the message says why, without repeating what came from outside."""


class GrantedRule(msgspec.Struct, frozen=True, array_like=True):
    """A destination that may be reached, and its ports (none means 80 and 443)."""

    domain: str
    ports: tuple[int, ...] = ()


class EgressGrant(msgspec.Struct, frozen=True, array_like=True):
    """What the sandbox at `address` may reach until `expires` (seconds since the epoch)."""

    sandbox_id: str
    address: str
    rules: tuple[GrantedRule, ...]
    expires: float


def granted(rules: Iterable[EgressRule]) -> tuple[GrantedRule, ...]:
    """A Sandbox's rules as a grant has them."""
    return tuple(GrantedRule(rule.domain, tuple(port.port for port in rule.ports)) for rule in rules)


def sign(key: bytes, grant: EgressGrant) -> str:
    """The token of `grant`, under the key of `Settings.egress_key_file`.

    Raises ValueError when the grant's address is none, or when it has more rules than a token can hold.
    """
    payload = msgspec.json.encode(msgspec.structs.replace(grant, address=_canonical(grant.address)))
    signed = f"{_VERSION}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    token = f"{signed}.{_mac(key, signed)}"
    if len(token) > MAX_TOKEN:
        raise ValueError("the sandbox's egress rules are too many or too long; allow fewer destinations")
    return token


def verify(key: bytes, token: str, address: str, now: float) -> EgressGrant:
    """The grant of `token` for a connection from `address`. Raises BadToken, whatever text is given.

    Nothing of the token is decoded before its mac has been checked.
    """
    if len(token) > MAX_TOKEN or not token.isascii():
        raise BadToken("this is no egress token")
    signed, _, mac = token.rpartition(".")
    if not hmac.compare_digest(_mac(key, signed).encode(), mac.encode()):
        raise BadToken("the egress token is not signed by this proxy's key")
    grant = _grant(signed)
    if grant.address != _canonical(address):
        raise BadToken("the egress token belongs to another sandbox's address")
    if not now < grant.expires:
        raise BadToken("the egress token has expired")
    return grant


def _grant(signed: str) -> EgressGrant:
    version, _, payload = signed.partition(".")
    if version != _VERSION:
        raise BadToken("the egress token is of an unknown version")
    try:
        raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        return msgspec.json.decode(raw, type=EgressGrant)
    except ValueError as error:
        raise BadToken(
            "the egress token cannot be read; are gateway and proxy of the same release?"
        ) from error


def _mac(key: bytes, signed: str) -> str:
    return hmac.new(key, f"egress-token\n{signed}".encode(), hashlib.sha256).hexdigest()


def _canonical(address: str) -> str:
    """One way to write an address: an IPv4 address that arrived by an IPv6 socket is itself."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
