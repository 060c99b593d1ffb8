"""What a sandbox may reach: pure decisions about names, ports and addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = (80, 443)

_READS = ("GET", "HEAD")

# is_global is the base of the decision; these are added, or are global only by a narrow reading.
_FORBIDDEN: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform, which answers its virtual machines only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments, and in it Oracle's older metadata address
        "192.168.0.0/16",
        "::/128",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "2001::/32",  # Teredo and 6to4 carry an IPv4 address that the tunnel would reach
        "2002::/16",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


class Destination(Protocol):
    """A rule as others write it: a domain and its ports (none means 80 and 443)."""

    @property
    def domain(self) -> str:
        """A host name, an address, or `*.` and a name for every name below it."""

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A destination that may be reached; `private`: at a private address too (as the operator's index).

    `read_only`: with GET and HEAD alone, where the method can be seen. In a CONNECT tunnel it cannot.
    """

    domain: str
    ports: tuple[int, ...] = DEFAULT_PORTS
    private: bool = False
    read_only: bool = False

    def allows(self, method: str, has_body: bool) -> bool:
        """True when a request of this method, with or without a body, may be sent."""
        return not self.read_only or method == "CONNECT" or (method in _READS and not has_body)


def normal_host(host: str) -> str:
    """A host as it is compared: lower case, no final dot or brackets, IDNA, addresses in short form.

    Raises ValueError when it is neither a host name nor an address.
    """
    host = host.strip().lower()
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1].partition("%")[0]))
    address = as_address(host)
    if address is not None:
        return str(address)
    name = host.rstrip(".")
    if not name.isascii():
        name = name.encode("idna").decode("ascii")
    labels = name.split(".")
    if len(name) > 253 or not all(_is_label(label) for label in labels):
        raise ValueError(f"{host!r} is not a host name")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        raise ValueError(f"{host!r} is an address in an unusual form")  # resolvers read 127.1 and 0x7f.1
    return name


def _is_label(label: str) -> bool:
    inner = label.replace("-", "").replace("_", "")
    return 0 < len(label) <= 63 and inner.isalnum() and label[0] != "-" and label[-1] != "-"


def as_address(host: str) -> Address | None:
    """The address that `host` is, or None."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def to_rules(destinations: Iterable[Destination]) -> tuple[Rule, ...]:
    """Rules from a request. Raises ValueError for a domain or port that is none."""
    return tuple(_to_rule(destination) for destination in destinations)


def _to_rule(destination: Destination) -> Rule:
    if any(not 0 < port < 65536 for port in destination.ports):
        raise ValueError(f"{destination.domain}: ports are from 1 to 65535")
    wildcard, domain = "", destination.domain
    if domain.startswith("*."):
        wildcard, domain = "*.", domain[2:]
    name = normal_host(domain)
    if wildcard and (as_address(name) is not None or "." not in name):
        raise ValueError(f"{destination.domain}: a wildcard needs a domain of two labels or more below it")
    return Rule(domain=wildcard + name, ports=tuple(destination.ports) or DEFAULT_PORTS)


def matching(host: str, port: int, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that allows `host` (in normal form) and `port`; one with `private` wins."""
    found = [rule for rule in rules if port in rule.ports and _matches(host, rule.domain)]
    return next((rule for rule in found if rule.private), found[0] if found else None)


def _matches(host: str, domain: str) -> bool:
    if domain.startswith("*."):
        return host.endswith(domain[1:]) and as_address(host) is None
    return host == domain


def forbidden_address(address: Address, denied: Sequence[Network] = ()) -> bool:
    """True for every address that is not on the public internet: private, link-local, metadata, loopback,
    shared, reserved, multicast, IPv4 addresses wrapped in IPv6 ones, and `denied` (a cluster's own ranges).
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return forbidden_address(address.ipv4_mapped, denied)
        if address in _NAT64:
            return forbidden_address(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), denied)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return True
    return any(address.version == net.version and address in net for net in (*_FORBIDDEN, *denied))


def usable(addresses: Iterable[str], rule: Rule, denied: Sequence[Network] = ()) -> list[str]:
    """Those of the resolved `addresses` that `rule` lets a sandbox reach, each once, in their order."""
    texts = dict.fromkeys(address.partition("%")[0] for address in addresses)
    return [
        text for text in texts if rule.private or not forbidden_address(ipaddress.ip_address(text), denied)
    ]


def index_rules(urls: Iterable[str]) -> tuple[Rule, ...]:
    """What installing from these package indexes must reach; a private index is the operator's own choice."""
    rules: dict[Rule, None] = {}
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            continue
        port = parts.port or (443 if parts.scheme == "https" else 80)
        rules[Rule(domain=normal_host(parts.hostname), ports=(port,), private=True, read_only=True)] = None
        if parts.hostname in ("pypi.org", "pypi.python.org"):
            rules[Rule(domain="files.pythonhosted.org", ports=(443,), private=True, read_only=True)] = None
    return tuple(rules)
