"""One leader at a time, by a Lease. It saves double work; nothing's correctness depends on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.client import KubeClient, KubeError, NotFound
from llmsafespace_kube.api.objects import micro_time
from llmsafespace_kube.resources import kinds
from llmsafespace_kube.resources.kubernetes import AnyObject

_log = logging.getLogger(__name__)

DURATION = 15  # seconds after which others take a lease that is not renewed
RENEW_LIMIT = 10.0  # the leader stops itself this long after its last renewal, so before others start
RETRY = 2.0
_RELEASE_LIMIT = 3.0


class LeaseSpec(msgspec.Struct, rename="camel"):
    """What is read of a Lease."""

    holder_identity: str | None = None
    lease_duration_seconds: int = DURATION
    lease_transitions: int = 0


def may_take(spec: LeaseSpec, identity: str, unchanged: float) -> bool:
    """Whether a candidate may take, or renew, a Lease that it has seen unchanged for so many seconds.

    The times in the Lease are not used: they come from another machine's clock.
    """
    return spec.holder_identity in (None, "", identity) or unchanged >= spec.lease_duration_seconds


class Leadership:
    """A candidate for the Lease of this name."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._version = ""  # of the Lease as it was last seen; "" when it has to be looked at
        self._spec = LeaseSpec()
        self._since = 0.0  # when that version was first seen, by the loop's clock
        self._renewed = 0.0  # when the last renewal that succeeded was sent
        self._gauge = metrics.LEADER.labels(name)

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Call `lead()` whenever this candidate leads, and cancel it before anybody else can.

        Returns when `lead()` returns and raises what it raises; the Lease is then released, as it is on
        cancellation.
        """
        try:
            while True:
                await self._acquire()
                _log.info("%s leads: it has the lease %s", self._identity, self._name)
                if await self._hold(lead):
                    return
                _log.warning(
                    "%s leads no more: the lease %s could not be renewed", self._identity, self._name
                )
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._take():
                    return
            except KubeError as error:
                _log.warning("trying to get the lease: %s", error)
            await asyncio.sleep(RETRY)

    async def _hold(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """True when `lead` ended by itself, False when the Lease was lost."""
        leading = asyncio.ensure_future(lead())
        renewing = asyncio.create_task(self._renew())
        self._gauge.set(1)
        try:
            await asyncio.wait((leading, renewing), return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
                return True
            return False
        finally:
            await _end(leading, renewing)
            self._gauge.set(0)

    async def _renew(self) -> None:
        """Return when the Lease is lost, or no longer sure to be held."""
        while True:
            await asyncio.sleep(RETRY)
            try:
                async with asyncio.timeout_at(self._renewed + RENEW_LIMIT):
                    if not await self._take():
                        return
            except TimeoutError:
                return
            except KubeError as error:
                _log.warning("renewing the lease: %s", error)

    async def _take(self) -> bool:
        """Take or renew the Lease; False when somebody else has it. KubeError: it is not clear who has."""
        now = asyncio.get_running_loop().time()
        if not self._version or self._spec.holder_identity != self._identity:
            await self._look(now)
        if self._version and not may_take(self._spec, self._identity, now - self._since):
            return False
        written = await self._write(self._identity, DURATION)
        self._note(written, now)
        self._renewed = now
        return True

    async def _look(self, now: float) -> None:
        try:
            self._note(await self._client.get(kinds.LEASE, self._name, self._namespace), now)
        except NotFound:
            self._version = ""

    def _note(self, lease: AnyObject, now: float) -> None:
        if lease.metadata.resource_version != self._version:
            self._since = now
        self._version = lease.metadata.resource_version
        self._spec = msgspec.convert(lease.spec or {}, LeaseSpec)

    async def _write(self, holder: str, duration: int) -> AnyObject:
        """Write the Lease, provided that it still is as it was last seen."""
        now = micro_time()
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "renewTime": now,
        }
        version, self._version = self._version, ""  # if this fails, it may have been written all the same
        if holder and self._spec.holder_identity != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = self._spec.lease_transitions + 1 if version else 0
        if not version:
            body = {"metadata": {"name": self._name}, "spec": spec}
            return await self._client.create(kinds.LEASE, body, self._namespace)
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._client.patch(kinds.LEASE, self._name, patch, self._namespace)

    async def _release(self) -> None:
        """Let the next candidate have it at once, if it is ours."""
        try:
            async with asyncio.timeout(_RELEASE_LIMIT):
                if not self._version:  # a renewal was cut off
                    await self._look(asyncio.get_running_loop().time())
                if self._version and self._spec.holder_identity == self._identity:
                    await self._write("", 1)
        except (KubeError, TimeoutError) as error:
            _log.info("the lease %s was not released and runs out by itself: %r", self._name, error)


async def _end(leading: asyncio.Future[None], renewing: asyncio.Future[None]) -> None:
    running = [each for each in (leading, renewing) if not each.done()]
    for each in running:
        each.cancel()
    if running:
        await asyncio.wait(running)
    if leading in running and not leading.cancelled() and (error := leading.exception()):
        _log.error("what the leader did ended badly", exc_info=error)
