"""Opens a stream to the agent of a pod: TLS, authenticated by the mutual proof instead of an authority."""

from __future__ import annotations

import asyncio
import socket
import ssl

import msgspec

from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.proof import NoAnswer, prove_as_gateway
from llmsafespace_protocol.requests import Open

CONNECT_TIMEOUT = 5.0


def _tls() -> ssl.SSLContext:
    """Agents' certificates are self-signed; the mutual proof covers the certificate's fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


_TLS = _tls()


async def dial(address: str, port: int, token: str, open_: Open) -> FrameStream:
    """Connect, run the proof and open the stream for `open_`. The caller must read the `Opened` answer.

    Raises ProofError if the agent does not hold this token, and OSError if it cannot be reached in time.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_TIMEOUT):
        _, stream = await loop.create_connection(
            FrameStream, address, port, ssl=_TLS, ssl_handshake_timeout=CONNECT_TIMEOUT
        )
    try:
        connection: socket.socket = stream.transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await prove_as_gateway(stream, bytes.fromhex(token), msgspec.to_builtins(open_))
    except NoAnswer as error:
        raise ConnectionError(str(error)) from error
    except BaseException:
        stream.abort()
        raise
    return stream
