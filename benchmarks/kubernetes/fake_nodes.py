"""Nodes that KWOK plays, whose pods' addresses all lead to this machine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

from llmsafespace_kube.api.client import KubeClient
from llmsafespace_kube.api.errors import KubeError
from llmsafespace_kube.api.objects import micro_time
from llmsafespace_kube.resources.kinds import LEASE, Kind
from llmsafespace_kube.resources.kubernetes import AnyObject

NETWORK = ipaddress.ip_network("10.99.0.0/16")
PODS_PER_NODE = 900
SELECTOR = {"type": "llmsafespace-bench"}
TOLERATION = {"key": "kwok.x-k8s.io/node", "operator": "Exists"}
_NODE = Kind("", "v1", "Node", "nodes", AnyObject, namespaced=False)
_LEASES = "kube-node-lease"
_READY_LIMIT = 30.0
_HEARTBEAT = 10.0  # seconds, as a kubelet's: a node whose Lease stands still for 40 is given up


def needed(pods: int) -> int:
    """Nodes for so many pods, and some that are on their way out."""
    return pods // PODS_PER_NODE + 2


@contextlib.asynccontextmanager
async def fake_nodes(client: KubeClient, count: int) -> AsyncIterator[None]:
    """Nodes while the context lasts. Raises RuntimeError when nobody plays them."""
    networks = list(NETWORK.subnets(new_prefix=22))[:count]
    route = ["local", str(NETWORK), "dev", "lo"]
    subprocess.run(["ip", "route", "add", *route], check=True)
    try:
        for number, network in enumerate(networks):
            await client.create(_NODE, _node(number, str(network)))
        beating = asyncio.create_task(_beat(client, count))
        try:
            await _until_ready(client, count)
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
    finally:
        for number in range(len(networks)):
            await client.delete(_NODE, _name(number))
            await client.delete(LEASE, _name(number), _LEASES)
        subprocess.run(["ip", "route", "del", *route], check=True)


async def _beat(client: KubeClient, count: int) -> None:
    """Renew the nodes' Leases, which KWOK leaves to others."""
    while True:
        for number in range(count):
            with contextlib.suppress(KubeError):  # the API server may be down just now
                await client.apply(
                    LEASE, _name(number), _lease(number), _LEASES, manager="llmsafespace-bench"
                )
        await asyncio.sleep(_HEARTBEAT)


async def _until_ready(client: KubeClient, count: int) -> None:
    deadline = time.monotonic() + _READY_LIMIT
    selector = ",".join(f"{key}={value}" for key, value in SELECTOR.items())
    while True:
        nodes, _ = await client.list(_NODE, label_selector=selector)
        # A node that nobody plays keeps the taint of one that has not reported yet.
        waiting = [node for node in nodes if "node.kubernetes.io/not-ready" in _taints(node)]
        if len(nodes) >= count and not waiting:
            return
        if time.monotonic() > deadline:
            raise RuntimeError("the fake nodes are not ready: KWOK must run and play nodes annotated so")
        await asyncio.sleep(0.2)


def _taints(node: AnyObject) -> list[str]:
    return [taint["key"] for taint in (node.spec or {}).get("taints", [])]


def _name(number: int) -> str:
    return f"llmsafespace-bench-{number}"


def _lease(number: int) -> dict[str, Any]:
    return {
        "spec": {"holderIdentity": _name(number), "leaseDurationSeconds": 40, "renewTime": micro_time()},
    }


def _node(number: int, network: str) -> dict[str, Any]:
    room = {"cpu": "100000", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": str(PODS_PER_NODE)}
    return {
        "metadata": {
            "name": _name(number),
            "labels": {**SELECTOR, "kubernetes.io/hostname": _name(number)},
            "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {
            "podCIDR": network,
            "podCIDRs": [network],
            "taints": [{"key": TOLERATION["key"], "value": "fake", "effect": "NoSchedule"}],
        },
        "status": {"allocatable": room, "capacity": room},
    }
