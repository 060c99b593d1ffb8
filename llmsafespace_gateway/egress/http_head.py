"""Heads of HTTP/1.1 requests and answers (RFC 9112). Pure functions.

h11 reads and writes the heads; what is decided here is which of them a proxy serves, and what a server and a
client are told of each other. Bodies pass as they are: one request a connection, so nothing can be smuggled.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import h11
import msgspec

from llmsafespace_gateway.egress.rules import normal_host

MAX_HEAD = 32 * 1024  # bytes
_VERSIONS = (b"1.0", b"1.1")
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
    event = _event(h11.Connection(h11.SERVER, MAX_HEAD), head)
    if not isinstance(event, h11.Request) or event.http_version not in _VERSIONS:
        raise BadRequest("this is an HTTP/1.1 proxy; the request line is malformed")
    method, target = event.method.decode(), event.target.decode()
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
    headers = _headers(event)
    return ProxyRequest(
        method=method, host=host, port=port, target=path, headers=headers, body_length=_body_length(headers)
    )


def _event(connection: h11.Connection, head: bytes) -> object:
    """What h11 reads out of a head. Raises BadRequest.

    h11 takes a bare newline for the end of a line; another server may not, so such a head is refused here.
    """
    if any(char in head.replace(b"\r\n", b"") for char in b"\r\n\0"):
        raise BadRequest("the head has a stray control character")
    try:
        connection.receive_data(head)
        return connection.next_event()
    except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        raise BadRequest(f"malformed HTTP: {error}") from None


def _headers(event: h11.Request | h11.Response) -> Headers:
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()
    )


def _authority(target: str) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    try:
        if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError
        return normal_host(host), int(port)
    except ValueError:
        raise BadRequest("CONNECT names a host and a port, as in CONNECT example.com:443") from None


def _body_length(headers: Headers) -> int:
    """The Content-Length, which h11 has checked."""
    named = {name.lower(): value for name, value in headers}
    if "transfer-encoding" in named:
        raise BadRequest("this proxy takes request bodies with a Content-Length only", 411)
    return int(named.get("content-length", "0"))


def origin_head(request: ProxyRequest) -> bytes:
    """The head that the server gets: its own path, the host that was checked, one request a connection."""
    head: bytes = h11.Connection(h11.CLIENT).send(_to_origin(request))
    return head


def _to_origin(request: ProxyRequest) -> h11.Request:
    host = f"[{request.host}]" if ":" in request.host else request.host
    headers = [("Host", host if request.port == 80 else f"{host}:{request.port}")]
    headers += [each for each in _kept(request.headers) if each[0].lower() not in ("host", "expect")]
    headers.append(("Connection", "close"))
    return h11.Request(
        method=request.method,
        target=request.target,
        headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
    )


def _kept(headers: Headers) -> Headers:
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.split(",")
    }
    dropped = _HOP_BY_HOP | (named - {"content-length", "host"})
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


def answer_head(request: ProxyRequest, head: bytes) -> bytes | None:
    """The head of a server's answer as the client gets it, the connection's end announced.

    None for an interim answer (1xx). Raises BadRequest with status 502 if the head is not HTTP.
    """
    connection = h11.Connection(h11.CLIENT, MAX_HEAD)
    connection.send(_to_origin(request))
    try:
        event = _event(connection, head)
    except BadRequest as error:
        raise BadRequest(f"the server did not answer in HTTP: {error}", 502) from None
    if isinstance(event, h11.InformationalResponse):
        return None
    if not isinstance(event, h11.Response):
        raise BadRequest("the server did not answer in HTTP", 502)
    version, reason = event.http_version.decode(), event.reason.decode("latin-1")
    kept = [f"{name}: {value}" for name, value in _kept(_headers(event))]
    lines = [f"HTTP/{version} {event.status_code} {reason}", *kept, "Connection: close"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


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
