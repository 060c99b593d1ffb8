"""Fake nodes for chaos: sandboxes whose pods KWOK plays, and whose agents are stubs."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.kubernetes.fake_nodes import SELECTOR, TOLERATION, fake_nodes
from llmsafespace_kube.api.client import KubeClient
from tests.cluster.support_processes import Installation


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def road_client(cluster: Any) -> AsyncIterator[KubeClient]:
    """A client on a good road."""
    made = await KubeClient.connect(user_agent="llmsafespace-chaos")
    yield made
    await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(road_client: KubeClient) -> AsyncIterator[None]:
    """Two nodes that KWOK plays."""
    try:
        async with fake_nodes(road_client, 2):
            yield
    except (RuntimeError, subprocess.CalledProcessError) as error:
        pytest.skip(f"chaos needs KWOK in the cluster, and root on this machine: {error}")


@pytest.fixture(scope="module")
def installation(nodes: None, install: Callable[..., Installation]) -> Installation:
    """An installation on them that does not wait long before it cleans up."""
    return install(
        claim_grace=3.0,
        sandbox_retention=2.0,
        start_timeout=30.0,
        pod_node_selector=SELECTOR,
        pod_tolerations=[TOLERATION],
    )
