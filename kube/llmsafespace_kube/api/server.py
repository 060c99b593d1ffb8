"""Where the API server is and what it is shown: from KUBECONFIG, or from inside the cluster."""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from pathlib import Path

from llmsafespace_kube.api import kubeconfig
from llmsafespace_kube.api.errors import KubeError
from llmsafespace_kube.api.kubeconfig import Access, ConfigurationError, Credentials

_RENEW_INTERVAL = 10.0  # seconds between two renewals of credentials that are refused
_READ_INTERVAL = 60.0  # seconds between two looks at a token's file, which its kubelet renews
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Server:
    """The API server's address, its TLS, and the credentials for it. Raises ConfigurationError."""

    def __init__(self, access: Access) -> None:
        self._credentials = access.credentials
        self._renewed = float("-inf")
        self._token = ""
        self._read_at = float("-inf")
        self.url = access.url
        self.tls = _tls(access)
        self.server_name = access.server_name

    @classmethod
    async def find(cls) -> Server:
        """What KUBECONFIG says, otherwise the cluster that this pod is in; raises KubeError."""
        path = os.environ.get("KUBECONFIG")
        try:
            return cls(await _load())
        except ConfigurationError as error:
            tried = f"KUBECONFIG {path}" if path else "this pod's service account (KUBECONFIG is not set)"
            raise KubeError(f"no API server is known from {tried}: {error}", reason="Configuration") from None

    async def credentials(self) -> dict[str, str]:
        """Headers of a request. A token's file is read again every minute."""
        token = self._credentials.token or self._from_file()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _from_file(self) -> str:
        """The one that was read last, where the file cannot be read now: it may still be good."""
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
        """Get credentials anew (a kubeconfig may say how); False when that was done a moment ago."""
        if time.monotonic() - self._renewed < _RENEW_INTERVAL:
            return False
        self._renewed = time.monotonic()
        try:
            access = await _load()
            if access.credentials.certificate:
                _show(self.tls, access.credentials)
        except ConfigurationError as error:
            raise KubeError(f"credentials cannot be renewed: {error}", reason="Configuration") from None
        self._credentials, self._read_at = access.credentials, float("-inf")
        return True


async def _load() -> Access:
    path = os.environ.get("KUBECONFIG")
    return await kubeconfig.load(path) if path else in_cluster(_ACCOUNT, os.environ)


def in_cluster(account: Path, environment: os._Environ[str] | dict[str, str]) -> Access:
    """What a pod is told of its API server. Raises ConfigurationError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigurationError("KUBERNETES_SERVICE_HOST and _PORT are not set: this is no pod")
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
    # Authorities of clusters are older than the rule that theirs must say what they are for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not access.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.credentials.certificate:
        _show(context, access.credentials)
    return context


def _show(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Use a certificate. Python reads it from a file only; this one is ours alone, and goes at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(credentials.certificate + b"\n" + credentials.key)
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"client-certificate and client-key do not work: {error}") from None
