"""The webhook's certificate and the authority that signs it: creation, and when to renew them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=90)

_RENEWED_AFTER = 2 / 3  # of its lifetime
_SKEW = timedelta(minutes=5)  # the API server's clock may be this much behind ours
_PEM = serialization.Encoding.PEM


class Certificates(msgspec.Struct, frozen=True):
    """The key and certificate that the webhook serves, and all authorities to trust (PEM)."""

    key: bytes
    certificate: bytes
    authorities: bytes


def make(
    hosts: Sequence[str],
    now: datetime,
    *,
    lifetime: timedelta = LIFETIME,
    trusted: bytes = b"",
) -> Certificates:
    """Make a certificate for these host names and addresses, with a new authority that signs nothing else.

    `trusted` has the authorities so far. Those that have not expired stay trusted, because other replicas may
    still serve a certificate of theirs.
    """
    start, end = now - _SKEW, now + lifetime
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer, subject = _name("LLMSafeSpace webhook authority"), _name("LLMSafeSpace webhook")
    identity = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        _builder(subject, issuer, key.public_key(), start, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    living = [each for each in _certificates(trusted) if each.not_valid_after_utc > now]
    return Certificates(
        key=key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate=certificate.public_bytes(_PEM),
        authorities=b"".join(each.public_bytes(_PEM) for each in [authority, *living]),
    )


def is_due(certificates: Certificates, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a new certificate is needed: two thirds of its lifetime are over, or it is wrong."""
    try:
        certificate = x509.load_pem_x509_certificate(certificates.certificate)
        key = serialization.load_pem_private_key(certificates.key, password=None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return True
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        not start <= now < start + (end - start) * _RENEWED_AFTER
        or set(names) != {_general(host) for host in hosts}
        or key.public_key() != certificate.public_key()
        or not any(_signed(certificate, each) for each in _certificates(certificates.authorities))
    )


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # cryptography raises several types for a bad signature
        return False
    return True


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        return []


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start.astimezone(UTC))
        .not_valid_after(end.astimezone(UTC))
    )


def _usage(*, key_cert_sign: bool = False, digital_signature: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
