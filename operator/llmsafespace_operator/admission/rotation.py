"""Keeps one certificate for all replicas of the webhook, and renews it in time.

The replicas share the certificate through a Secret. Each one reads it every minute. The first that finds it
due writes a new one; the Secret's resource version lets only one succeed. A replica first publishes the new
authority in the webhook's configuration, and serves the certificate one round later, when the API server
trusts it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmsafespace_kube.api.client import Conflict, KubeClient, KubeError
from llmsafespace_kube.resources.kinds import SECRET, WEBHOOK
from llmsafespace_operator.admission.certificates import LIFETIME, Certificates, is_due, make

_log = logging.getLogger(__name__)

_KEY, _CERTIFICATE, _AUTHORITIES = "tls.key", "tls.crt", "ca.crt"


class Rotation:
    """Loads the Secret's certificate into `context` and writes its authority to the webhook's configuration.

    Secret and configuration have the same name. The chart creates both, empty.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        hosts: Sequence[str],
        *,
        period: float = 60.0,
        lifetime: timedelta = LIFETIME,
    ) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.ready = asyncio.Event()  # set once `context` has a certificate
        self._client = client
        self._namespace = namespace
        self._name = name
        self._hosts = hosts
        self._period = period
        self._lifetime = lifetime
        self._serving: Certificates | None = None
        self._published: Certificates | None = None

    async def run(self) -> None:
        """Check the certificate every `period` seconds until cancelled. Errors are logged and retried."""
        while True:
            try:
                await self._round()
            except (KubeError, OSError) as error:
                _log.warning("the webhook's certificate could not be checked: %s", error)
            await asyncio.sleep(self._period)

    async def _round(self) -> None:
        certificates = await self._agreed()
        await self._publish(certificates.authorities)
        if self._serving is None or certificates == self._published != self._serving:
            _load(self.context, certificates)
            self._serving = certificates
            self.ready.set()
            _log.info("the webhook serves a new certificate")
        self._published = certificates

    async def _agreed(self) -> Certificates:
        """Return the Secret's certificate; if it is due, replace it first. The first replica wins."""
        while True:
            secret = await self._client.get(SECRET, self._name, self._namespace)
            found = Certificates(
                secret.data.get(_KEY, b""),
                secret.data.get(_CERTIFICATE, b""),
                secret.data.get(_AUTHORITIES, b""),
            )
            now = datetime.now(UTC)
            if not is_due(found, self._hosts, now):
                return found
            made = make(self._hosts, now, lifetime=self._lifetime, trusted=found.authorities)
            data = {_KEY: made.key, _CERTIFICATE: made.certificate, _AUTHORITIES: made.authorities}
            version = {"resourceVersion": secret.metadata.resource_version}
            try:
                await self._client.patch(
                    SECRET, self._name, {"metadata": version, "data": data}, self._namespace
                )
            except Conflict:
                continue
            return made

    async def _publish(self, authorities: bytes) -> None:
        configuration = await self._client.get(WEBHOOK, self._name)
        patch = [
            operation
            for place, webhook in enumerate(configuration.webhooks)
            if webhook.client_config.ca_bundle != authorities
            for operation in (
                {"op": "test", "path": f"/webhooks/{place}/name", "value": webhook.name},
                {"op": "add", "path": f"/webhooks/{place}/clientConfig/caBundle", "value": authorities},
            )
        ]
        if patch:
            await self._client.patch(WEBHOOK, self._name, patch)


def _load(context: ssl.SSLContext, certificates: Certificates) -> None:
    """Use the certificate for new connections. Python reads keys only from files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "both.pem")
        file.touch(0o600)
        file.write_bytes(certificates.key + certificates.certificate)
        context.load_cert_chain(file)
