"""Sandboxes as somebody with kubectl sees them, and a way into them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_kube.claims import agents, tokens
from llmsafespace_kube.resources.names import AGENT_PORT
from llmsafespace_protocol.frames import FrameKind
from llmsafespace_protocol.requests import Answer, ExecutionInfo, OpenExecution, OpenRpc, Request
from tests.cluster.support import Kubectl, eventually
from tests.cluster.support_processes import Installation

SANDBOX = "sandboxes.llmsafespace.dev"
WARMPOD = "warmpods.llmsafespace.dev"
WARMPOOL = "warmpools.llmsafespace.dev"
Manifest = dict[str, Any]
SMALL: Manifest = {"cpu": "250m", "memory": "256Mi"}


class Sandboxes:
    """Makes, looks at, and uses the Sandboxes of an installation."""

    def __init__(self, installation: Installation, kubectl: Kubectl) -> None:
        self.namespace = installation.sandboxes
        self.pools = installation.pools
        self.kubectl = kubectl
        self._key = Path(installation.settings.key_file).read_bytes().strip()

    def apply(self, name: str, **spec: Any) -> None:
        """A Sandbox of Python that asks for little."""
        made = manifest("Sandbox", name, {"runtime": "python:3.11", "resources": SMALL, **spec})
        self.kubectl.apply(made, namespace=self.namespace)

    def get(self, name: str) -> Manifest | None:
        """The Sandbox, None when it is gone."""
        return self._find(SANDBOX, self.namespace, name)

    def status(self, name: str) -> Manifest:
        """Its status, perhaps empty."""
        found = self.get(name)
        assert found is not None, f"{name} is gone"
        status: Manifest = found.get("status", {})
        return status

    def in_phase(self, name: str, phase: str) -> Manifest:
        """Its status as soon as it is in this phase."""

        def reached() -> Manifest:
            status = self.status(name)
            assert status.get("phase", "Pending") == phase, status
            return status

        return eventually(reached)

    def gone(self, name: str) -> bool:
        """Whether nothing is left of it: neither itself, nor its pod, Secret or WarmPod."""
        secrets = self.kubectl.items("secrets", self.namespace)
        owners = {owner["name"] for one in secrets for owner in one["metadata"].get("ownerReferences", [])}
        if self.get(name) is not None or name in owners:
            return False
        claims = (one["spec"].get("claim", {}) for one in self.kubectl.items(WARMPOD, self.pools))
        return self.pods(name) == [] and all(claim.get("sandbox", {}).get("name") != name for claim in claims)

    def pods(self, name: str) -> list[Manifest]:
        """Its pods, of its own and claimed: one at most, if all is well."""
        claimed = {
            one["metadata"]["name"]
            for one in self.kubectl.items(WARMPOD, self.pools)
            if one["spec"].get("claim", {}).get("sandbox", {}).get("name") == name
        }
        own = [one for one in self.kubectl.items("pods", self.namespace) if one["metadata"]["name"] == name]
        pool = [one for one in self.kubectl.items("pods", self.pools) if one["metadata"]["name"] in claimed]
        return own + pool

    def delete(self, name: str) -> None:
        """As kubectl does, which waits for the finalizer."""
        self.kubectl("delete", SANDBOX, name, "-n", self.namespace, "--timeout=30s")

    def pool(self, name: str, size: int, resources: Manifest = SMALL) -> None:
        """A warm pool, as soon as it is full."""
        spec = {"runtime": "python:3.11", "minSize": size, "resources": resources}
        self.kubectl.apply(manifest("WarmPool", name, spec), namespace=self.pools)
        eventually(lambda: len(self.ready(name)) == size, what=f"a full pool {name}")

    def ready(self, pool: str) -> list[Manifest]:
        """The unclaimed WarmPods of a pool that are ready."""
        return [
            one
            for one in self.kubectl.items(WARMPOD, self.pools)
            if one["spec"]["poolRef"]["name"] == pool
            and "claim" not in one["spec"]
            and one.get("status", {}).get("phase") == "Ready"
        ]

    async def run(self, name: str, code: str) -> tuple[ExecutionInfo, bytes]:
        """Run code in it, as a gateway would; how that ended, and all that it said."""
        return await run(self.status(name)["podIP"], self.token(name), code)

    async def call(self, name: str, method: str, parameters: Manifest) -> None:
        """Ask its agent for something, as a gateway would."""
        await ask(self.status(name)["podIP"], self.token(name), method, parameters)

    def token(self, name: str) -> str:
        """Of its agent."""
        return tokens.agent_token(self._key, self.owner(name))

    def owner(self, name: str) -> str:
        """The uid that its agent's token is made from."""
        reference = self.status(name).get("warmPodRef")
        owner = self._find(WARMPOD, self.pools, reference["name"]) if reference else self.get(name)
        assert owner is not None
        uid: str = owner["metadata"]["uid"]
        return uid

    def _find(self, resource: str, namespace: str, name: str) -> Manifest | None:
        found = self.kubectl.items(resource, namespace)
        return next((one for one in found if one["metadata"]["name"] == name), None)


async def ask(address: str, token: str, method: str, parameters: Manifest) -> Answer:
    """What the agent at an address answers to a call."""
    stream = await agents.dial(address, AGENT_PORT, token, OpenRpc())
    try:
        await stream.next_frame()
        call = Request(1, method, msgspec.Raw(msgspec.json.encode(parameters)))
        stream.send(FrameKind.JSON, msgspec.json.encode(call))
        return msgspec.json.decode((await stream.next_frame())[1], type=Answer)
    finally:
        stream.close()


async def run(address: str, token: str, code: str) -> tuple[ExecutionInfo, bytes]:
    """Run code in the agent at an address."""
    request = OpenExecution(execution=secrets.token_hex(8), code=code)
    stream = await agents.dial(address, AGENT_PORT, token, request)
    said = b""
    info: ExecutionInfo | None = None
    try:
        while True:
            kind, body = await stream.next_frame()
            said += body
            if kind == FrameKind.JSON and b'"status"' in body:
                info = msgspec.json.decode(body, type=ExecutionInfo)
    except ConnectionError:
        assert info is not None, said
        return info, said
    finally:
        stream.close()


def manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "llmsafespace.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def condition(status: Manifest, type_: str) -> Manifest:
    found: list[Manifest] = [one for one in status.get("conditions", []) if one["type"] == type_]
    assert found, f"no condition {type_} in {status}"
    return found[0]
