"""A gateway whose watch is behind does not take what it knows for what is."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec
import pytest

from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.resources.kinds import SANDBOX
from llmsafespace_kube.resources.settings import Settings
from tests.cluster.faults import faulty_server
from tests.cluster.support import Namespaces, eventually_async


@pytest.fixture
def settings(namespaces: Namespaces, crds: None, tmp_path: Path) -> Settings:
    (tmp_path / "key").write_text(secrets.token_hex(32))
    return Settings(
        system_namespace=namespaces("system"),
        sandbox_namespaces={namespaces("sandboxes"): "default"},
        pool_namespaces=[namespaces("pools")],
        key_file=str(tmp_path / "key"),
        gateway_url="http://127.0.0.1",
    )


async def test_a_cold_sandbox_that_another_gateway_made_is_found_where_it_runs(
    settings: Settings, client: KubeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (namespace,) = settings.sandbox_namespaces
    (tmp_path / "settings.json").write_bytes(msgspec.json.encode(settings))
    name = f"sb-{secrets.token_hex(10)}"
    async with faulty_server() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        gateway = await Cluster.connect(tmp_path / "settings.json")
        try:
            await gateway.start()
            sandbox = {"metadata": {"name": name}, "spec": {"runtime": "python:3.11", "useWarmPool": False}}
            await client.create(SANDBOX, sandbox, namespace)

            async def known() -> bool:
                return gateway.known(name) is not None

            await eventually_async(known)
            server.stall_watches()
            place = {"status": {"phase": "Running", "podName": name, "podIP": "10.0.0.1"}}
            await client.patch(SANDBOX, name, place, namespace, subresource="status")
            found = await gateway.sandbox(name)
            assert found is not None
            assert found.status.pod_ip == "10.0.0.1"
        finally:
            await gateway.stop()
