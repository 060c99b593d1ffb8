"""Whose X-Forwarded-For is believed: that of the proxies which the operator names, and of nobody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
UNIX = "unix"  # as a proxy: whoever may connect to our unix socket


class TrustedProxies:
    """Proxies by their networks: `10.0.0.0/8`, an address, or `unix`. Raises ValueError for other texts."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        wanted = [text.strip() for text in texts if text.strip()]
        self.unix = UNIX in wanted
        self._networks = tuple(_network(text) for text in wanted if text != UNIX)

    def __bool__(self) -> bool:
        return self.unix or bool(self._networks)

    def trusts(self, address: str | None) -> bool:
        """True when the peer with this address is one of them; None is a peer on a unix socket."""
        if address is None:
            return self.unix
        if not self._networks:
            return False
        known = parse(address)
        return known is not None and self._is_ours(known)

    def client(self, forwarded_for: str | None) -> str | None:
        """The right-most address of X-Forwarded-For that is none of the proxies'.

        What stands left of it was written by the client itself. None when there is no such address.
        """
        found: str | None = None
        for text in reversed((forwarded_for or "").split(",")):
            address = parse(text)
            if address is None:
                break  # nobody can tell who wrote what is left of it
            found = str(address)
            if not self._is_ours(address):
                break
        return found

    def _is_ours(self, address: Address) -> bool:
        return any(address.version == net.version and address in net for net in self._networks)


def scheme(forwarded_proto: str | None) -> str | None:
    """The scheme that the nearest proxy was asked with; None when it does not say."""
    last = (forwarded_proto or "").rpartition(",")[2].strip().lower()
    return last if last in ("http", "https") else None


def parse(text: str) -> Address | None:
    """The address in a text as `192.0.2.1`, `192.0.2.1:80`, `[2001:db8::1]:80`, `2001:db8::1`; else None."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def group(text: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    address = parse(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address) if address is not None else text


def is_loopback(text: str) -> bool:
    """True for an address of this machine."""
    address = parse(text)
    return address is not None and address.is_loopback


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a network; write it as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32, or write unix"
        ) from None
