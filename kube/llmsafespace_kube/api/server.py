"""The API server's address and our credentials, from KUBECONFIG or from the pod's service account."""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from pathlib import Path

from llmsafespace_kube.api import kubeconfig
from llmsafespace_kube.api.errors import KubeError
from llmsafespace_kube.api.kubeconfig import Access, ConfigurationError, Credentials

_RENEW_INTERVAL = 10.0  # minimum seconds between two renewals of refused credentials
_READ_INTERVAL = 60.0  # seconds between two reads of the token file, which the kubelet renews
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Server:
    """The API server's address, its TLS context, and the credentials for it."""

    def __init__(self, access: Access) -> None:
        """Raises ConfigurationError if a certificate or an authority cannot be used."""
        self._credentials = access.credentials
        self._renewed = float("-inf")
        self._token = ""
        self._read_at = float("-inf")
        self.url = access.url
        self.tls = _tls(access)
        self.server_name = access.server_name

    @classmethod
    async def find(cls) -> Server:
        """Use KUBECONFIG if it is set, otherwise the pod's service account. Raises KubeError."""
        path = os.environ.get("KUBECONFIG")
        try:
            return cls(await _load())
        except ConfigurationError as error:
            tried = f"KUBECONFIG {path}" if path else "this pod's service account (KUBECONFIG is not set)"
            raise KubeError(
                f"cannot find the API server by {tried}: {error}", reason="Configuration"
            ) from None

    async def credentials(self) -> dict[str, str]:
        """Return the request headers with the credentials. A token file is read again every minute.

        Raises KubeError if the token file has never been readable.
        """
        token = self._credentials.token or self._from_file()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _from_file(self) -> str:
        """Return the token of the file; if it cannot be read now, the last one, which may still be valid."""
        path = self._credentials.token_file
        if path and time.monotonic() - self._read_at >= _READ_INTERVAL:
            try:
                self._token = Path(path).read_text().strip()
                self._read_at = time.monotonic()
            except (OSError, UnicodeDecodeError) as error:
                if not self._token:
                    raise KubeError(
                        f"the token in {path} cannot be read: {error}", reason="Configuration"
                    ) from None
        return self._token

    async def renew(self) -> bool:
        """Load the credentials again after a 401; return False if that was done a moment ago.

        Raises KubeError if they cannot be loaded.
        """
        if time.monotonic() - self._renewed < _RENEW_INTERVAL:
            return False
        self._renewed = time.monotonic()
        try:
            access = await _load()
            if access.credentials.certificate:
                _load_certificate(self.tls, access.credentials)
        except ConfigurationError as error:
            raise KubeError(f"credentials cannot be renewed: {error}", reason="Configuration") from None
        self._credentials, self._read_at = access.credentials, float("-inf")
        return True


async def _load() -> Access:
    path = os.environ.get("KUBECONFIG")
    return await kubeconfig.load(path) if path else in_cluster(_ACCOUNT, os.environ)


def in_cluster(account: Path, environment: os._Environ[str] | dict[str, str]) -> Access:
    """Return the API server and the service account of this pod. Raises ConfigurationError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigurationError(
            "KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is not set: the process does not run in a pod"
        )
    token = account / "token"
    try:
        authority = (account / "ca.crt").read_bytes()
        if not token.read_text().strip():
            raise ConfigurationError(f"{token} is empty")
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: {error.strerror}") from None
    where = f"[{host}]" if ":" in host else host
    credentials = Credentials(token_file=str(token))
    return Access(url=f"https://{where}:{port}", authority=authority, credentials=credentials)


def _tls(access: Access) -> ssl.SSLContext:
    try:
        authority = access.authority.decode("ascii")
        context = ssl.create_default_context(cadata=authority or None)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"certificate-authority is not PEM: {error}") from None
    # Certificate authorities of many clusters lack the key usage extension that the strict check requires.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not access.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.credentials.certificate:
        _load_certificate(context, access.credentials)
    return context


def _load_certificate(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Use a client certificate. Python reads it only from a file: a private one that is deleted at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(credentials.certificate + b"\n" + credentials.key)
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"client-certificate and client-key cannot be used: {error}") from None
