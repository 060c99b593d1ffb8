"""Connections that do not wait for ever: keep-alive of TCP, and time limits of HTTP.

A peer that goes away without closing (a lost network, a stopped proxy) leaves a connection on which nothing
ever comes. Two things find this out: TCP keep-alive where the peer's host is gone, and a limit on silence
where it still acknowledges. A stream is not cut for being quiet: the gateway sends a heartbeat on it.
"""

from __future__ import annotations

import functools
import socket
import ssl
import urllib.request
from urllib.parse import urlsplit

import httpx

from llmsafespace.settings import Endpoint

CONNECT_TIMEOUT = 10.0  # seconds
SILENCE = 60.0  # seconds without a byte on a stream, which has a heartbeat every 15
WRITE_STALL = 120.0  # seconds in which the peer takes nothing of what is sent
_KEEP_ALIVE = (  # the first probe after 20 silent seconds, given up 20 seconds later; macOS: TCP_KEEPALIVE
    ("TCP_KEEPIDLE", 20),
    ("TCP_KEEPALIVE", 20),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 4),
    ("TCP_NOTSENT_LOWAT", 256 * 1024),  # progress of a slow upload is seen in small steps
)

Option = tuple[int, int, int]


def socket_options() -> list[Option]:
    """The options of every TCP socket, as far as this platform has them."""
    options: list[Option] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _KEEP_ALIVE:
        number = getattr(socket, name, None)
        if number is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    return options


def keep_alive(sock: socket.socket | None) -> None:
    """Set them on a socket that something else opened; unix sockets need none."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        for option in socket_options():
            sock.setsockopt(*option)


def http_client(endpoint: Endpoint) -> httpx.AsyncClient:
    """The HTTP client for an endpoint. Streams do not use up its connections: their number has no limit."""
    verify: ssl.SSLContext | bool = tls_context() if endpoint.url.startswith("https:") else False
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    transport: httpx.AsyncHTTPTransport | None = None
    if endpoint.socket:
        transport = httpx.AsyncHTTPTransport(uds=endpoint.socket, limits=limits)
    elif not _through_proxy(endpoint):  # httpx looks for proxies only where it is given no transport
        transport = httpx.AsyncHTTPTransport(verify=verify, limits=limits, socket_options=socket_options())
    return httpx.AsyncClient(
        base_url=endpoint.url,
        headers=endpoint.headers,
        transport=transport,
        limits=limits,
        trust_env=not endpoint.is_local,
        verify=verify,
    )


def time_limits(silence: float, size: int = 0) -> httpx.Timeout:
    """Limits per phase of one attempt: `silence` seconds for the answer, and time to send `size` bytes."""
    write = WRITE_STALL + size / 16384  # one write may be the whole body; 16 KiB/s is slow but alive
    return httpx.Timeout(silence, connect=CONNECT_TIMEOUT, write=write, pool=None)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One TLS context for the process: making one costs some 20 ms."""
    return httpx.create_ssl_context()


def _through_proxy(endpoint: Endpoint) -> bool:
    """True when the environment names a proxy for this URL."""
    if endpoint.is_local:
        return False
    parts = urlsplit(endpoint.url)
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(
        parts.netloc
    )
