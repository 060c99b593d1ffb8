"""Leader election by a Lease: one candidate at a time leads.

The leader renews the Lease every 2 seconds. If it has not renewed it for 10 seconds, it stops itself; other
candidates take the Lease after 15 seconds without a change. Each candidate measures with its own clock how
long it has seen the Lease unchanged, so that wrong clocks do no harm. A write carries the resource version
that was last read: of two candidates only one succeeds. Leader election avoids double work; correctness must
not depend on it, because a paused process can go on for a moment after another one has taken over.
"""

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

DURATION = 15  # seconds without a renewal after which another candidate takes the Lease
RENEW_LIMIT = 10.0  # seconds after its last renewal the leader stops itself, before another one can start
RETRY = 2.0  # seconds between two renewals, or two tries
_RELEASE_LIMIT = 3.0


class LeaseSpec(msgspec.Struct, rename="camel"):
    """The fields of a Lease's spec that are read here."""

    holder_identity: str | None = None
    lease_duration_seconds: int = DURATION
    lease_transitions: int = 0


def may_take(spec: LeaseSpec, identity: str, unchanged: float) -> bool:
    """Whether a candidate may take or renew a Lease that it has seen unchanged for `unchanged` seconds.

    The times in the Lease are not used, because they come from another machine's clock.
    """
    return spec.holder_identity in (None, "", identity) or unchanged >= spec.lease_duration_seconds


class Leadership:
    """A candidate for the Lease of this name."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._version = ""  # resource version of the Lease as last seen; "" if it must be read again
        self._spec = LeaseSpec()
        self._since = 0.0  # when that version was first seen, by the loop's clock
        self._renewed = 0.0  # when the last successful renewal was sent
        self._gauge = metrics.LEADER.labels(name)

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Call `lead()` while this candidate leads, and cancel it before another candidate can take over.

        Returns when `lead()` returns, and raises what it raises. Then, and on cancellation, the Lease is
        released.
        """
        try:
            while True:
                await self._acquire()
                _log.info("%s is the leader: it holds the lease %s", self._identity, self._name)
                if await self._hold(lead):
                    return
                _log.warning(
                    "%s is no longer the leader: the lease %s could not be renewed",
                    self._identity,
                    self._name,
                )
        finally:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._take():
                    return
            except KubeError as error:
                _log.warning("taking the lease %s: %s", self._name, error)
            await asyncio.sleep(RETRY)

    async def _hold(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """Run `lead`; return True if it ended by itself, False if the Lease was lost."""
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
            await _cancel(leading, renewing)
            self._gauge.set(0)

    async def _renew(self) -> None:
        """Renew the Lease; return when it is lost, or when it may be lost."""
        while True:
            await asyncio.sleep(RETRY)
            try:
                async with asyncio.timeout_at(self._renewed + RENEW_LIMIT):
                    if not await self._take():
                        return
            except TimeoutError:
                return
            except KubeError as error:
                _log.warning("renewing the lease %s: %s", self._name, error)

    async def _take(self) -> bool:
        """Take or renew the Lease; return False if another candidate holds it.

        Raises KubeError if it is not known who holds it.
        """
        now = asyncio.get_running_loop().time()
        if not self._version or self._spec.holder_identity != self._identity:
            await self._read(now)
        if self._version and not may_take(self._spec, self._identity, now - self._since):
            return False
        written = await self._write(self._identity, DURATION)
        self._remember(written, now)
        self._renewed = now
        return True

    async def _read(self, now: float) -> None:
        try:
            self._remember(await self._client.get(kinds.LEASE, self._name, self._namespace), now)
        except NotFound:
            self._version = ""

    def _remember(self, lease: AnyObject, now: float) -> None:
        if lease.metadata.resource_version != self._version:
            self._since = now
        self._version = lease.metadata.resource_version
        self._spec = msgspec.convert(lease.spec or {}, LeaseSpec)

    async def _write(self, holder: str, duration: int) -> AnyObject:
        """Write the Lease; raises Conflict if it has changed since it was last read."""
        now = micro_time()
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "renewTime": now,
        }
        version, self._version = (
            self._version,
            "",
        )  # a failed write may have happened: read the Lease next time
        if holder and self._spec.holder_identity != holder:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = self._spec.lease_transitions + 1 if version else 0
        if not version:
            body = {"metadata": {"name": self._name}, "spec": spec}
            return await self._client.create(kinds.LEASE, body, self._namespace)
        patch = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._client.patch(kinds.LEASE, self._name, patch, self._namespace)

    async def _release(self) -> None:
        """If we hold the Lease, free it, so that the next candidate need not wait until it expires."""
        try:
            async with asyncio.timeout(_RELEASE_LIMIT):
                if not self._version:  # a renewal was interrupted
                    await self._read(asyncio.get_running_loop().time())
                if self._version and self._spec.holder_identity == self._identity:
                    await self._write("", 1)
        except (KubeError, TimeoutError) as error:
            _log.info("the lease %s was not released; it will expire: %r", self._name, error)


async def _cancel(leading: asyncio.Future[None], renewing: asyncio.Future[None]) -> None:
    running = [each for each in (leading, renewing) if not each.done()]
    for each in running:
        each.cancel()
    if running:
        await asyncio.wait(running)
    if leading in running and not leading.cancelled() and (error := leading.exception()):
        _log.error("the leader's work failed while it was being stopped", exc_info=error)
