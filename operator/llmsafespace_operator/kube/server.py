"""Where the API server is and what it is shown: from KUBECONFIG, or from inside the cluster."""

from __future__ import annotations

import os
import ssl
import time

from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from llmsafespace_operator.kube.errors import KubeError

_RENEW_INTERVAL = 10.0  # seconds between two renewals of credentials that are refused


class Server:
    """The API server's address, its TLS, and the credentials for it."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._renewed = float("-inf")
        self.url: str = configuration.host.rstrip("/")
        self.tls: ssl.SSLContext = RESTClientObject(configuration).ssl_context
        self.server_name: str | None = configuration.tls_server_name

    @classmethod
    async def find(cls) -> Server:
        """What KUBECONFIG says, otherwise the cluster that this pod is in; raises KubeError."""
        return cls(await _load())

    async def credentials(self) -> dict[str, str]:
        """Headers of a request. A service account's token is read again from its file every minute."""
        settings = await self._configuration.auth_settings()
        return {each["key"]: each["value"] for each in settings.values()}

    async def renew(self) -> bool:
        """Get credentials anew (a kubeconfig may say how); False when that was done a moment ago."""
        if time.monotonic() - self._renewed < _RENEW_INTERVAL:
            return False
        self._renewed = time.monotonic()
        self._configuration = await _load()
        return True


async def _load() -> Configuration:
    found = Configuration()
    path = os.environ.get("KUBECONFIG")
    try:
        if path:
            await config.load_kube_config(path, client_configuration=found, persist_config=False)
        else:
            config.load_incluster_config(client_configuration=found)
    except (config.ConfigException, OSError, ValueError) as error:
        tried = f"KUBECONFIG {path}" if path else "this pod's service account (KUBECONFIG is not set)"
        raise KubeError(f"no API server is known from {tried}: {error}", reason="Configuration") from None
    if found.proxy:
        raise KubeError(f"KUBECONFIG {path}: proxy-url is not supported", reason="Configuration")
    return found
