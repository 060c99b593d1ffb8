"""A stream that was opened ahead of a claim is closed when the claim fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from benchmarks.kubernetes.stubs import StubAgents
from llmsafespace_agent.server import certificate
from llmsafespace_gateway.backends.base import Resources, SandboxSpec
from llmsafespace_gateway.backends.kubernetes.backend import KubernetesBackend
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.resources import types
from llmsafespace_kube.resources.kubernetes import Metadata
from llmsafespace_kube.resources.names import AGENT_PORT
from llmsafespace_kube.resources.settings import Settings
from llmsafespace_protocol.frames import FrameStream

LIMIT = 30.0
POD = "127.31.7.9"
KEY = b"k" * 32


class Agents(StubAgents):
    """Remembers who came."""

    def __init__(self) -> None:
        super().__init__(KEY, {POD: "uid-of-pod"}.get)
        self.came: list[FrameStream] = []
        self.somebody_came = asyncio.Event()

    def arrived(self, stream: FrameStream) -> None:
        self.came.append(stream)
        self.somebody_came.set()
        super().arrived(stream)


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    made = Agents()
    await made.start(certificate.begin(), host=POD, port=AGENT_PORT)
    yield made
    await made.stop()


@pytest.fixture
async def api_server(agents: Agents) -> AsyncIterator[str]:
    """It fails, but not before the pod has been dialled."""

    async def fail(request: web.Request) -> web.Response:
        async with asyncio.timeout(LIMIT):
            await agents.somebody_came.wait()
        return web.json_response({"kind": "Status", "message": "out of order"}, status=500)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fail)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def backend(
    api_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubernetesBackend]:
    """A backend that knows of one warm pod."""
    path = tmp_path / "kubeconfig"
    cluster = {"name": "one", "cluster": {"server": api_server}}
    context = {"name": "one", "context": {"cluster": "one", "user": "one"}}
    document = {"clusters": [cluster], "users": [{"name": "one", "user": {}}], "contexts": [context]}
    path.write_text(yaml.safe_dump({**document, "kind": "Config", "current-context": "one"}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    client = await KubeClient.connect(user_agent="tests")
    settings = Settings(system_namespace="system", key_file="key", gateway_url="http://gateway")
    known = Cluster(client, settings, KEY, None)
    made = KubernetesBackend(known)
    python = types.RuntimeEnvironment(
        metadata=Metadata(name="python", uid="r", resource_version="1"),
        spec=types.RuntimeEnvironmentSpec(image="python", language="python", version="3.11"),
        status=types.RuntimeEnvironmentStatus(available=True),
    )
    known.environments.observe(python)
    pool = types.WarmPool(
        metadata=Metadata(name="pool", namespace="warm-pools", uid="p", resource_version="2"),
        spec=types.WarmPoolSpec(runtime="python:3.11"),
    )
    known.warm_pools.observe(pool)
    pod = types.WarmPod(
        metadata=Metadata(name="pod", namespace="warm-pools", uid="uid-of-pod", resource_version="3"),
        spec=types.WarmPodSpec(pool_ref=types.NamedObject("pool", "warm-pools")),
        status=types.WarmPodStatus(
            phase="Ready",
            pod_ip=POD,
            runtime="python",
            security_level="standard",
            resources=types.PoolResources(),
        ),
    )
    known.warm_pods.observe(pod)
    yield made
    await client.close()


async def test_a_claim_that_fails_leaves_no_stream(backend: KubernetesBackend, agents: Agents) -> None:
    wish = SandboxSpec(
        sandbox_id="sb-1", runtime="python", owner="u", tenant="default", resources=Resources(cpu=0.5)
    )
    with pytest.raises(ApiError) as failed:
        await backend.claim(wish)
    assert failed.value.code == "service_unavailable"
    (stream,) = agents.came[:1]
    async with asyncio.timeout(LIMIT):
        await stream.wait_closed()
