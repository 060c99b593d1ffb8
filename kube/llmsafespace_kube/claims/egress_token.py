"""The egress token says which destinations a sandbox may reach.

It is signed at bind, sent by the agent, and checked by the egress proxy. Format: `1.<payload>.<mac>`. The
payload is base64url JSON; the mac is an HMAC over everything before it. The token contains nothing secret
from its sandbox, and is valid only from the sandbox's own address.
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
    """The token is not valid; the message says why and contains no untrusted text."""


class GrantedRule(msgspec.Struct, frozen=True, array_like=True):
    """A destination that may be reached, and its ports (an empty tuple means 80 and 443)."""

    domain: str
    ports: tuple[int, ...] = ()


class EgressGrant(msgspec.Struct, frozen=True, array_like=True):
    """The destinations that the sandbox at `address` may reach until `expires` (seconds since the epoch)."""

    sandbox_id: str
    address: str
    rules: tuple[GrantedRule, ...]
    expires: float


def granted(rules: Iterable[EgressRule]) -> tuple[GrantedRule, ...]:
    """Convert a Sandbox's egress rules into those of a grant."""
    return tuple(GrantedRule(rule.domain, tuple(port.port for port in rule.ports)) for rule in rules)


def sign(key: bytes, grant: EgressGrant) -> str:
    """Return the token of `grant`, signed with the key of `Settings.egress_key_file`.

    Raises ValueError if `grant.address` is not an IP address, or if the rules do not fit into a token.
    """
    payload = msgspec.json.encode(msgspec.structs.replace(grant, address=_canonical(grant.address)))
    signed = f"{_VERSION}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    token = f"{signed}.{_mac(key, signed)}"
    if len(token) > MAX_TOKEN:
        raise ValueError("the sandbox's egress rules are too many or too long; allow fewer destinations")
    return token


def verify(key: bytes, token: str, address: str, now: float) -> EgressGrant:
    """Return the grant of `token` for a connection from `address`. Raises BadToken for every invalid text.

    The payload is decoded only after the mac has been checked.
    """
    if len(token) > MAX_TOKEN or not token.isascii():
        raise BadToken("this is not an egress token")
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
        raise BadToken("the egress token has an unknown version")
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
    """Return the canonical form of an address; an IPv4-mapped IPv6 address becomes the IPv4 address."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
