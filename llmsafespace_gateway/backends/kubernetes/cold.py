"""Cold starts: the gateway writes down what it wants, the operator starts a pod for it."""

from __future__ import annotations

import asyncio
import logging

from llmsafespace_gateway.backends.base import SandboxSpec
from llmsafespace_gateway.backends.kubernetes import objects
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.backends.kubernetes.errors import explained, unavailable
from llmsafespace_operator.kube.errors import AlreadyExists, KubeError, Unavailable
from llmsafespace_operator.resources import types
from llmsafespace_operator.resources.kinds import SANDBOX

log = logging.getLogger(__name__)

START_LIMIT = 120.0  # seconds
_BUSY = 5.0  # seconds after which to ask again


async def create(cluster: Cluster, sandbox: types.Sandbox) -> types.Sandbox:
    """Create a Sandbox; one whose creation was not answered is asked for. Raises KubeError."""
    name, namespace = sandbox.metadata.name, sandbox.metadata.namespace
    for last in (False, True):
        try:
            made = await cluster.client.create(SANDBOX, sandbox, namespace)
            break
        except AlreadyExists:  # the names are random: it is our own
            made = await cluster.client.get(SANDBOX, name, namespace)
            break
        except Unavailable:
            if last:
                raise
    cluster.sandboxes.observe(made)
    return made


class ColdStarts:
    """So many at a time in this process."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._limit = cluster.settings.max_cold_starts
        self._running = 0

    async def start(self, spec: SandboxSpec, namespace: str, reason: str) -> types.Sandbox:
        """A Sandbox whose pod is ready. Nothing is left of one that fails. Raises ApiError."""
        if self._running >= self._limit:
            raise unavailable(
                f"no warm sandbox serves this ({reason}), and {self._running} others are being started, "
                "which is the limit; try again",
                _BUSY,
            )
        self._running += 1
        try:
            return await self._start(objects.cold_sandbox(spec, namespace, reason))
        finally:
            self._running -= 1

    async def _start(self, wanted: types.Sandbox) -> types.Sandbox:
        name, namespace = wanted.metadata.name, wanted.metadata.namespace
        try:
            with explained("the sandbox could not be started"):
                await create(self._cluster, wanted)
            try:
                async with asyncio.timeout(START_LIMIT):
                    found = await self._cluster.sandboxes.wait(name, namespace, _decided)
            except TimeoutError:
                found = self._cluster.sandboxes.get(name, namespace)
            if found is None or not objects.runs(found):
                raise unavailable(f"the sandbox could not be started: {_trouble(found)}")
            return found
        except BaseException:
            await asyncio.shield(self._remove(name, namespace))
            raise

    async def _remove(self, name: str, namespace: str) -> None:
        try:
            await self._cluster.client.delete(SANDBOX, name, namespace)
        except KubeError as error:
            log.warning("the Sandbox %s, which did not start, stays for now: %s", name, error)


def _decided(sandbox: types.Sandbox | None) -> bool:
    return sandbox is None or objects.runs(sandbox) or objects.end_of(sandbox) is not None


def _trouble(sandbox: types.Sandbox | None) -> str:
    """Why it does not run, in words."""
    if sandbox is None:
        return "its Sandbox was deleted"
    ended = objects.end_of(sandbox)
    if ended is not None:
        return ended.message or f"it ended: {ended.end}"
    said = [each.message for each in sandbox.status.conditions if each.status == "False" and each.message]
    return "; ".join(said) or f"nothing was heard of its pod for {START_LIMIT:g} s; does the operator run?"
