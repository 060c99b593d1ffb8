"""What may be done to a cluster that is the tests' own: its storage stands still, its API server dies."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest


class Outage:
    """Outages by the tool that made the cluster."""

    def __init__(self, tool: Path) -> None:
        self._tool = str(tool)

    @classmethod
    def of_own_cluster(cls) -> Outage:
        """Skips the test where the cluster is somebody else's."""
        tools = os.environ.get("CLUSTER_TOOLS")
        if not tools:
            pytest.skip("CLUSTER_TOOLS is not set: the cluster may be in use by others")
        return cls(Path(tools, "cluster"))

    async def stop_etcd(self, seconds: float) -> None:
        """Let etcd stand still."""
        await self._signal("STOP", "etcd")
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._signal("CONT", "etcd")

    async def kill_api_server(self) -> None:
        """It comes back by itself, some seconds later."""
        await self._run("restart", "kube-apiserver")

    async def _signal(self, signal: str, component: str) -> None:
        state = os.environ.get("KUBE_STATE", "/var/lib/kube-cluster")
        await self._run("exec", "sh", "-c", f'kill -{signal} "$(cat {state}/pid/{component})"')

    async def _run(self, *command: str) -> None:
        process = await asyncio.create_subprocess_exec(self._tool, *command)
        assert await process.wait() == 0, f"{self._tool} {' '.join(command)} failed"
