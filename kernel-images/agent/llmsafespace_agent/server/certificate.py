"""A certificate of the agent's own, made anew at each start.

Nobody signs it and nobody need trust it: `llmsafespace_protocol.proof` binds it to the sandbox's token. It is
made in a child process, because the library for it costs more memory than all the rest of the agent.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta

_VALID = timedelta(days=3650)
_MAX = 64 * 1024


def begin() -> int:
    """Start to make one; returns a descriptor for `finish`. Call before the event loop runs."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        status = 1
        try:
            os.close(reading)
            os.write(writing, _make())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return reading


def finish(handle: int, folder: str) -> tuple[ssl.SSLContext, bytes]:
    """A server context with the certificate, and the certificate itself (DER). Waits until it is made.

    Raises RuntimeError when it could not be made.
    """
    with os.fdopen(handle, "rb") as pipe:
        pem = pipe.read(_MAX)
    begin_certificate = pem.find(b"-----BEGIN CERTIFICATE-----")
    if begin_certificate < 0:
        raise RuntimeError("no certificate could be made; is the package cryptography installed?")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # mode 0600, and gone at once
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context, ssl.PEM_cert_to_DER_cert(pem[begin_certificate:].decode())


def _make() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "llmsafespace-agent")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
