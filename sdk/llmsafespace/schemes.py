"""Finds out why nothing answers at a new address: https to a port of plain HTTP, or the other way round.

A port of plain HTTP waits for the end of a line that a TLS client never sends, so such a client sees nothing
but silence. Asked in the right way both kinds of ports answer at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from urllib.parse import SplitResult, urlsplit

from llmsafespace.errors import GatewayUnavailable
from llmsafespace.settings import Endpoint

PROBE_WITHIN = 2.0  # seconds
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


async def check_scheme(endpoint: Endpoint) -> None:
    """Raise GatewayUnavailable when what is at the endpoint's address speaks the other of http and https."""
    parts = urlsplit(endpoint.url)
    speaks_other = _answers_plainly if parts.scheme == "https" else _answers_in_tls
    other = "http" if parts.scheme == "https" else "https"
    with contextlib.suppress(OSError, asyncio.TimeoutError, TimeoutError):
        if await asyncio.wait_for(speaks_other(parts), PROBE_WITHIN):
            raise GatewayUnavailable(wrong_scheme(endpoint.url, other))


def certificate_problem(error: BaseException) -> str | None:
    """What is wrong with the TLS of a connection that failed; None where it failed for another reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted here ({cause.verify_message}): "
                "name the file of your certificate authority in SSL_CERT_FILE"
            )
        if isinstance(cause, ssl.SSLError) and any(word in str(cause).upper() for word in _NO_TLS):
            return "it does not speak TLS: write http:// in the URL"
        cause = cause.__cause__ or cause.__context__
    return None


def wrong_scheme(url: str, other: str) -> str:
    """The message for an URL that has https for http, or http for https."""
    parts = urlsplit(url)
    right = parts._replace(scheme=other).geturl()
    return f"{parts.netloc} speaks {other}, not {parts.scheme}: use {right}"


async def _answers_plainly(parts: SplitResult) -> bool:
    """Whether it says in plain HTTP that it is well. A port of TLS answers that with an error, if at all."""
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443)
    try:
        head = f"GET {parts.path}/healthz HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("ascii", "replace"))
        return (await reader.readline()).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    finally:
        writer.close()


async def _answers_in_tls(parts: SplitResult) -> bool:
    """Whether it shakes hands; whose certificate it is does not matter, as nothing is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
    writer.close()
    return True
