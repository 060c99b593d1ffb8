"""The API server asks the operator's webhook: refusals, warnings, who is not asked, renewed certificates."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import ssl
import string
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from tornado.testing import bind_unused_port

from llmsafespace_kube.api.client import Invalid, KubeClient
from llmsafespace_kube.resources.kinds import PROFILE, RUNTIME, SANDBOX, SECRET, WARMPOOL, WEBHOOK, Kind
from llmsafespace_operator.admission.certificates import is_due, make
from llmsafespace_operator.admission.rotation import Rotation
from llmsafespace_operator.admission.rules import Verdict
from llmsafespace_operator.admission.webhook import PATH, Judge, Request, Webhook
from tests.cluster.conftest import Cluster
from tests.cluster.support import Kubectl, KubectlError, Namespaces, eventually_async

CHART = Path(__file__).parents[2] / "deploy/helm/llmsafespace"
PERIOD = 0.5  # seconds between the rounds of a rotation
# Of nobody else in the cluster; a language has no digits.
LANGUAGE = "".join(random.choices(string.ascii_lowercase, k=12))


class Installed:
    """The webhook's configuration as in the chart, but served by this process; its Secret, empty."""

    def __init__(self, kubectl: Kubectl, namespaces: Namespaces, host: str) -> None:
        self.system = namespaces("webhook-system")
        self.namespace = namespaces("webhook")
        self.name = f"webhook-{secrets.token_hex(3)}-llmsafespace-webhook"
        self.host = host
        self._kubectl = kubectl

    def configure(self, port: int) -> None:
        """Have the API server ask at this port, and forget the authority."""
        [configuration] = [
            each for each in self._rendered() if each["kind"] == "ValidatingWebhookConfiguration"
        ]
        assert configuration["metadata"]["name"] == self.name
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"] = {"url": f"https://{self.host}:{port}{PATH}"}
        self._kubectl("delete", "--ignore-not-found", "validatingwebhookconfiguration", self.name)
        self._kubectl.apply(configuration)

    def empty_secret(self) -> None:
        self._kubectl("delete", "--ignore-not-found", "secret", self.name, "--namespace", self.system)
        self._kubectl("create", "secret", "generic", self.name, "--namespace", self.system)

    def remove(self) -> None:
        self._kubectl("delete", "--ignore-not-found", "validatingwebhookconfiguration", self.name)

    def _rendered(self) -> Iterator[Any]:
        version = self._kubectl.json("version")["serverVersion"]["gitVersion"]
        # The webhook is asked about every kind in each of them.
        namespaces = {"sandboxes": {"no-such": "t", "agent-sandboxes": None}, "pools": [self.namespace]}
        command = ["helm", "template", self.name.removesuffix("-llmsafespace-webhook"), str(CHART)]
        command += ["--namespace", self.system, "--kube-version", version]
        command += ["--set-json", f"namespaces={json.dumps(namespaces)}", "--set", "warmPools=null"]
        command += ["--show-only", "templates/webhook.yaml"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return yaml.safe_load_all(done.stdout)


class Listening(Judge):
    """A Judge that remembers what it was asked."""

    def __init__(self, client: KubeClient, installed: Installed) -> None:
        super().__init__(client, installed.system, [installed.namespace])
        self.asked: list[tuple[str, str]] = []

    async def verdict(self, request: Request) -> Verdict:
        self.asked.append((request.kind.kind, request.name))
        return await super().verdict(request)


class Serving:
    """A webhook at a port of this machine."""

    def __init__(self, client: KubeClient, installed: Installed) -> None:
        socket, self.port = bind_unused_port(address=installed.host)
        socket.close()
        self.judge = Listening(client, installed)
        self.hosts = [installed.host]
        rotation = Rotation(client, installed.system, installed.name, self.hosts, period=PERIOD)
        self.webhook = Webhook(self.judge, rotation, port=self.port, address=installed.host)

    async def certificate(self) -> x509.Certificate:
        pem = await asyncio.to_thread(ssl.get_server_certificate, (self.hosts[0], self.port))
        return x509.load_pem_x509_certificate(pem.encode())


@pytest.fixture(scope="module")
def installed(cluster: Cluster, kubectl: Kubectl, crds: None, namespaces: Namespaces) -> Iterator[Installed]:
    made = Installed(kubectl, namespaces, cluster.host)
    yield made
    made.remove()


@pytest.fixture
async def serving(client: KubeClient, installed: Installed) -> AsyncIterator[Serving]:
    made = Serving(client, installed)
    installed.empty_secret()
    installed.configure(made.port)
    await made.webhook.start()
    await eventually_async(lambda: _refuses(client, installed), what="an API server that asks")
    yield made
    await made.webhook.stop()


@pytest.fixture
async def runtime(client: KubeClient, installed: Installed) -> AsyncIterator[str]:
    """An available RuntimeEnvironment of version 1.2 that needs 1Gi; its name."""
    name = f"{LANGUAGE}-1.2"
    spec = {
        "image": "localhost/none:1",
        "language": LANGUAGE,
        "version": "1.2",
        "resourceRequirements": {"minMemory": "1Gi"},
    }
    await client.create(RUNTIME, {"metadata": {"name": name}, "spec": spec})
    await client.patch(RUNTIME, name, {"status": {"available": True}}, subresource="status")
    yield name
    pools, _ = await client.list(WARMPOOL, installed.namespace)
    for pool in pools:
        await client.delete(WARMPOOL, pool.metadata.name, installed.namespace)
    await client.delete(RUNTIME, name)


async def _make(client: KubeClient, kind: Kind[Any], name: str, namespace: str, **spec: Any) -> str:
    """Create an object; the API server's refusal, or nothing."""
    try:
        await client.create(kind, {"metadata": {"name": name}, "spec": spec}, namespace)
    except Invalid as error:
        return error.message
    return ""


async def _refuses(client: KubeClient, installed: Installed) -> bool:
    name = f"probe-{secrets.token_hex(4)}"
    refusal = await _make(client, WARMPOOL, name, installed.namespace, runtime="nothing-like-it")
    await client.delete(WARMPOOL, name, installed.namespace)
    return "no runtime for the language" in refusal


async def test_what_nothing_serves_is_refused(
    client: KubeClient, serving: Serving, installed: Installed, runtime: str
) -> None:
    for kind in (SANDBOX, WARMPOOL):

        async def refusal(kind: Kind[Any] = kind, **spec: Any) -> str:
            return await _make(client, kind, "wrong", installed.namespace, **spec)

        assert "there is no runtime" in await refusal(runtime=f"{LANGUAGE}:9")
        ours = f"{LANGUAGE}:1.2"
        assert "needs memory of at least 1Gi" in await refusal(runtime=ours, resources={"memory": "512Mi"})
        enough = {"memory": "1Gi"}
        profile = await refusal(runtime=ours, resources=enough, profileRef={"name": "missing"})
        assert "there is no SandboxProfile missing" in profile
        assert await _make(client, kind, "right", installed.namespace, runtime=ours, resources=enough) == ""


async def test_a_profile_that_was_just_made_is_known(
    client: KubeClient, serving: Serving, installed: Installed, runtime: str
) -> None:
    await client.create(PROFILE, {"metadata": {"name": "new"}, "spec": {}}, installed.namespace)
    refusal = await _make(
        client,
        WARMPOOL,
        "profiled",
        installed.namespace,
        runtime=f"{LANGUAGE}:1.2",
        profileRef={"name": "new"},
    )
    assert refusal == ""


async def test_another_version_is_served_with_a_warning(
    kubectl: Kubectl, serving: Serving, installed: Installed, runtime: str
) -> None:
    spec = {"runtime": f"{LANGUAGE}:1.1"}
    body = {"apiVersion": "llmsafespace.dev/v1", "kind": "WarmPool", "metadata": {"name": "warned"}}
    arguments = ("create", "--namespace", installed.namespace, "--warnings-as-errors", "--filename", "-")
    with pytest.raises(KubectlError, match=f"Warning: {LANGUAGE}:1.1 is not available here"):
        await asyncio.to_thread(kubectl, *arguments, stdin=json.dumps({**body, "spec": spec}))


async def test_a_namespace_that_nobody_serves_is_warned_of(
    kubectl: Kubectl, serving: Serving, installed: Installed, namespaces: Namespaces
) -> None:
    elsewhere = await asyncio.to_thread(namespaces, "unserved")
    body = {"apiVersion": "llmsafespace.dev/v1", "kind": "WarmPool", "metadata": {"name": "lost"}}
    arguments = ("create", "--namespace", elsewhere, "--warnings-as-errors", "--filename", "-")
    with pytest.raises(KubectlError, match=f"Warning: no operator serves .* in the namespace {elsewhere}"):
        await asyncio.to_thread(
            kubectl, *arguments, stdin=json.dumps({**body, "spec": {"runtime": "python:3.11"}})
        )


async def test_a_runtime_in_use_cannot_be_deleted(
    client: KubeClient, serving: Serving, installed: Installed, runtime: str
) -> None:
    made = await _make(client, WARMPOOL, "user", installed.namespace, runtime=f"{LANGUAGE}:1.2")
    assert made == ""
    with pytest.raises(Invalid, match=f"WarmPools use it: .*{installed.namespace}/user"):
        await client.delete(RUNTIME, runtime)
    await client.delete(WARMPOOL, "user", installed.namespace)
    assert await client.delete(RUNTIME, runtime)


async def test_gateways_and_what_asks_for_nothing_new_do_not_wait(
    client: KubeClient, serving: Serving, installed: Installed, runtime: str
) -> None:
    await _make(client, WARMPOOL, "scaled", installed.namespace, runtime=f"{LANGUAGE}:1.2")
    serving.judge.asked.clear()
    warm_pod = {"name": "one", "namespace": installed.namespace, "claimId": "sb-1"}
    cold = f"sb-{secrets.token_hex(10)}"
    nothing_like_it = {"runtime": "nothing-like-it"}
    assert (
        await _make(client, SANDBOX, "of-a-gateway", installed.namespace, warmPod=warm_pod, **nothing_like_it)
        == ""
    )
    assert await _make(client, SANDBOX, cold, installed.namespace, **nothing_like_it) == ""
    await client.patch(WARMPOOL, "scaled", {"metadata": {"labels": {"a": "b"}}}, installed.namespace)
    await client.patch(
        WARMPOOL, "scaled", {"status": {"replicas": 1}}, installed.namespace, subresource="status"
    )
    assert serving.judge.asked == []


async def test_a_pool_whose_runtime_has_gone_can_still_be_scaled(
    client: KubeClient, serving: Serving, installed: Installed, runtime: str
) -> None:
    await _make(client, WARMPOOL, "orphan", installed.namespace, runtime=f"{LANGUAGE}:1.2", minSize=2)
    await client.patch(RUNTIME, runtime, {"spec": {"language": f"{LANGUAGE}x"}})
    scaled = await client.patch(WARMPOOL, "orphan", {"spec": {"minSize": 0}}, installed.namespace)
    assert scaled.spec.min_size == 0
    with pytest.raises(Invalid, match="there is no runtime"):
        await client.patch(WARMPOOL, "orphan", {"spec": {"runtime": f"{LANGUAGE}:1.1"}}, installed.namespace)


async def test_without_an_operator_everything_is_taken(
    client: KubeClient, serving: Serving, installed: Installed
) -> None:
    await serving.webhook.stop()
    assert await _make(client, SANDBOX, "taken", installed.namespace, runtime="nothing-like-it") == ""


async def test_a_certificate_is_renewed_before_its_end_and_nothing_passes_meanwhile(
    client: KubeClient, installed: Installed
) -> None:
    first, second = Serving(client, installed), Serving(client, installed)
    old = make(first.hosts, datetime.now(UTC) - timedelta(days=50))
    installed.empty_secret()
    await _store(client, installed, old.key, old.certificate, old.authorities)
    installed.configure(first.port)
    for each in (first, second):
        await each.webhook.start()
    try:
        await eventually_async(lambda: _refuses(client, installed), what="an API server that asks")
        before = await first.certificate()
        assert before == x509.load_pem_x509_certificate(old.certificate)

        due = make(first.hosts, datetime.now(UTC) - timedelta(days=70))
        assert is_due(due, first.hosts, datetime.now(UTC))
        await _store(client, installed, due.key, due.certificate, old.authorities)

        refused = []

        async def renewed() -> bool:
            refused.append(await _refuses(client, installed))
            return await first.certificate() != before

        await eventually_async(renewed, what="another certificate")
        refused.append(await _refuses(client, installed))
        assert all(refused), "something passed while the certificate changed"

        async def same() -> bool:
            return await first.certificate() == await second.certificate()

        await eventually_async(same, what="two replicas with one certificate")
    finally:
        for each in (first, second):
            await each.webhook.stop()


async def test_what_somebody_deletes_is_put_back(
    client: KubeClient, serving: Serving, installed: Installed
) -> None:
    await _store(client, installed, b"", b"", b"")
    installed.configure(serving.port)  # without an authority, as after a careless apply
    assert not (await client.get(WEBHOOK, installed.name)).webhooks[0].client_config.ca_bundle
    await eventually_async(lambda: _refuses(client, installed), what="an API server that asks again")


async def _store(
    client: KubeClient, installed: Installed, key: bytes, certificate: bytes, authorities: bytes
) -> None:
    data = {"tls.key": key, "tls.crt": certificate, "ca.crt": authorities}
    await client.patch(SECRET, installed.name, {"data": data}, installed.system)
