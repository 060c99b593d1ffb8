"""Heads of HTTP/1.1 requests and answers (RFC 9112): strict, pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from llmsafespace_gateway.egress.rules import normal_host

MAX_HEAD = 32 * 1024  # bytes
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,18}")  # int() refuses thousands of digits with an error of its own
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "te",
        "upgrade",
    )
)

Headers = tuple[tuple[str, str], ...]


class BadRequest(ValueError):
    """The head cannot be served; `status` is the HTTP status and the message the reason for people."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ProxyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks of the proxy. `target` is the path of a plain request, empty for CONNECT."""

    method: str
    host: str  # in normal form
    port: int
    target: str = ""
    headers: Headers = ()
    body_length: int = 0

    @property
    def tunnel(self) -> bool:
        """True for CONNECT."""
        return self.method == "CONNECT"


def parse_request(head: bytes) -> ProxyRequest:
    """A request head up to and with its empty line. Raises BadRequest."""
    lines = _lines(head)
    parts = lines[0].split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest("this is an HTTP proxy; the request line is malformed")
    method, target, _ = parts
    headers = _headers(lines[1:])
    if method == "CONNECT":
        host, port = _authority(target)
        return ProxyRequest(method=method, host=host, port=port)
    try:
        url = urlsplit(target)
        port = url.port or 80
        if url.scheme != "http" or not url.hostname or url.username is not None:
            raise ValueError
        host = normal_host(url.hostname)
    except ValueError:
        raise BadRequest(
            "a proxy request names the whole address, as in GET http://example.com/path"
        ) from None
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return ProxyRequest(
        method=method, host=host, port=port, target=path, headers=headers, body_length=_body_length(headers)
    )


def _lines(head: bytes) -> list[str]:
    try:
        text = head.decode("ascii") if head.isascii() else head.decode("latin-1")
    except UnicodeDecodeError:
        raise BadRequest("the head is not text") from None
    lines = text.removesuffix("\r\n\r\n").split("\r\n")
    if any(char in line for line in lines for char in "\r\n\0"):
        raise BadRequest("the head has a stray control character")
    return lines


def _headers(lines: Sequence[str]) -> Headers:
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest("a header line is malformed")
        headers.append((name, value.strip(" \t")))
    return tuple(headers)


def _authority(target: str) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    try:
        if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError
        return normal_host(host), int(port)
    except ValueError:
        raise BadRequest("CONNECT names a host and a port, as in CONNECT example.com:443") from None


def _body_length(headers: Headers) -> int:
    lengths = {value for name, value in headers if name.lower() == "content-length"}
    if any(name.lower() == "transfer-encoding" for name, _ in headers):
        raise BadRequest("this proxy takes request bodies with a Content-Length only", 411)
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise BadRequest("Content-Length is malformed")
    return int(length)


def origin_head(request: ProxyRequest) -> bytes:
    """The head that the server gets: its own path, the host that was checked, one request a connection."""
    host = f"[{request.host}]" if ":" in request.host else request.host
    lines = [f"{request.method} {request.target} HTTP/1.1"]
    lines.append(f"Host: {host}" if request.port == 80 else f"Host: {host}:{request.port}")
    lines += [
        f"{name}: {value}" for name, value in _kept(request.headers) if name.lower() not in ("host", "expect")
    ]
    lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _kept(headers: Headers) -> Headers:
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.split(",")
    }
    dropped = _HOP_BY_HOP | (named - {"content-length", "host"})
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


def answer_head(head: bytes) -> bytes | None:
    """A server's head as the client gets it, the connection's end announced; None for an interim (1xx) one.

    Raises BadRequest (status 502) when it is no HTTP.
    """
    try:
        lines = _lines(head)
        parts = lines[0].split(" ", 2)
        if not parts[0].startswith("HTTP/1.") or len(parts) < 2 or not re.fullmatch(r"[1-5]\d\d", parts[1]):
            raise BadRequest("the status line is malformed")
        headers = _headers(lines[1:])
    except BadRequest as error:
        raise BadRequest(f"the server's answer is not HTTP: {error}", 502) from None
    if parts[1].startswith("1"):
        return None
    kept = [f"{name}: {value}" for name, value in _kept(headers)]
    return ("\r\n".join([lines[0], *kept, "Connection: close"]) + "\r\n\r\n").encode("latin-1")


def error_answer(status: int, text: str) -> bytes:
    """A whole answer of the proxy's own."""
    reasons = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 411: "Length Required"}
    reasons |= {431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable"}
    reasons |= {504: "Gateway Timeout"}
    body = (text.rstrip("\n") + "\n").encode()
    head = (
        f"HTTP/1.1 {status} {reasons.get(status, 'Error')}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
