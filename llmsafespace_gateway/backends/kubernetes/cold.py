"""Cold starts: the gateway writes down what it wants, the operator starts a pod for it."""

from __future__ import annotations

import asyncio
import functools
import logging

from llmsafespace_gateway.backends.base import SandboxSpec
from llmsafespace_gateway.backends.kubernetes import objects
from llmsafespace_gateway.backends.kubernetes.cluster import Cluster
from llmsafespace_gateway.backends.kubernetes.errors import explained, unavailable
from llmsafespace_gateway.backends.progress import tell
from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.errors import AlreadyExists, KubeError, Unavailable
from llmsafespace_kube.resources import names, types
from llmsafespace_kube.resources.kinds import SANDBOX

log = logging.getLogger(__name__)

OPERATOR_LIMIT = 45.0  # seconds for an operator to take a Sandbox up; another one may have to take over first
_BUSY = 5.0  # seconds after which to ask again
_CROWDED = 15.0  # the same, when a sandbox must end first
_FAILED = 30.0  # the same, when something has to be mended; clients do not try again by themselves so late


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

    async def start(
        self, spec: SandboxSpec, namespace: str, reason: str, pool: str | None = None
    ) -> types.Sandbox:
        """A Sandbox whose pod is ready. Nothing is left of one that fails. Raises ApiError."""
        if self._running >= self._limit:
            raise unavailable(
                f"no warm sandbox serves this ({reason}), and {self._running} others are being started, "
                "which is the limit; try again",
                _BUSY,
            )
        self._running += 1
        tell("Cold", f"a pod is started for it: {reason}")
        try:
            return await self._start(objects.cold_sandbox(spec, namespace, reason, pool))
        finally:
            self._running -= 1

    async def _start(self, wanted: types.Sandbox) -> types.Sandbox:
        name, namespace = wanted.metadata.name, wanted.metadata.namespace
        try:
            with explained("the sandbox could not be started"):
                await create(self._cluster, wanted)
            found = await self._decision(name, namespace)
            if found is None or not objects.runs(found):
                raise refusal(found)
            return found
        except BaseException:
            await asyncio.shield(self._remove(name, namespace))
            raise

    async def _decision(self, name: str, namespace: str) -> types.Sandbox | None:
        """The Sandbox once it runs or has ended: the operator's limits hold, if there is an operator."""
        settings, clock = self._cluster.settings, asyncio.get_running_loop()
        longest = settings.schedule_timeout + 2 * settings.start_timeout + OPERATOR_LIMIT
        said = ""
        try:
            async with asyncio.timeout(OPERATOR_LIMIT) as limit:
                while True:
                    found = await self._cluster.sandboxes.wait(
                        name, namespace, functools.partial(_is_news, said)
                    )
                    if _decided(found):
                        return found
                    if not said:
                        limit.reschedule(clock.time() + longest)
                    reason, said = _waits_for(found)
                    tell(reason, said)
        except TimeoutError:
            return self._cluster.sandboxes.get(name, namespace)

    async def _remove(self, name: str, namespace: str) -> None:
        try:
            await self._cluster.client.delete(SANDBOX, name, namespace)
        except KubeError as error:
            log.warning("the Sandbox %s, which did not start, stays for now: %s", name, error)


def _decided(sandbox: types.Sandbox | None) -> bool:
    return sandbox is None or objects.runs(sandbox) or objects.end_of(sandbox) is not None


def _is_news(said: str, sandbox: types.Sandbox | None) -> bool:
    return _decided(sandbox) or _waits_for(sandbox)[1] != said


def _waits_for(sandbox: types.Sandbox | None) -> tuple[str, str]:
    """Why it does not run, in the operator's words: one for machines, a sentence; empty at first."""
    for one in sandbox.status.conditions if sandbox is not None else ():
        if one.type == "Ready" and one.status == "False":
            return one.reason, one.message
    return "", ""


def refusal(sandbox: types.Sandbox | None) -> ApiError:
    """The error for a Sandbox that does not run."""
    if sandbox is None:
        return unavailable("the sandbox could not be started: its Sandbox was deleted")
    reason, said = _waits_for(sandbox)
    ended = objects.end_of(sandbox)
    if ended is not None:
        said = ended.message or f"it ended: {ended.end}"
    elif not said:
        reason, said = (
            "NoOperator",
            f"nothing was heard of it for {OPERATOR_LIMIT:g} s; does the operator run?",
        )
    if reason == names.UNSCHEDULABLE:
        return unavailable(f"there is no room for the sandbox: {said}", _CROWDED, {"reason": reason})
    return unavailable(f"the sandbox could not be started: {said}", _FAILED, {"reason": reason})
