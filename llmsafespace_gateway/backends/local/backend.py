"""The local backend: sandboxes on this machine behind the SandboxBackend protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from llmsafespace_gateway.backends.base import (
    Claim,
    Condition,
    Ended,
    Place,
    Profile,
    Quarantined,
    Resources,
    Runtime,
    SandboxSpec,
    Start,
    Stranger,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_gateway.backends.local import host as machine
from llmsafespace_gateway.backends.local import launch
from llmsafespace_gateway.backends.local import pool as planning
from llmsafespace_gateway.backends.local.plans import Host, Recipe
from llmsafespace_gateway.backends.local.pools import Pools, Taken
from llmsafespace_gateway.backends.local.profiles import PROFILES
from llmsafespace_gateway.backends.local.records import Bound, Claimed, State
from llmsafespace_gateway.backends.local.registry import Entry, Registry
from llmsafespace_gateway.backends.local.starts import Starts
from llmsafespace_gateway.backends.progress import tell
from llmsafespace_gateway.backends.runtimes.prepared import PreparedRuntime
from llmsafespace_gateway.egress.proxy import EgressProxy
from llmsafespace_gateway.egress.rules import to_rules
from llmsafespace_gateway.errors import ApiError
from llmsafespace_protocol.environment import early
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.proof import ProofError
from llmsafespace_protocol.requests import BindRequest, Open

log = logging.getLogger("llmsafespace.local")

LIFE_MARGIN = 3.0  # seconds after the end of its lifetime that a sandbox's agent may take to end it


class RuntimeSource(Protocol):
    """What the backend asks of the part that prepares runtimes."""

    async def resolve(self, runtime: str) -> tuple[PreparedRuntime, tuple[str, ...]]:
        """The runtime that serves a request and warnings about what differs. Raises RuntimeUnavailable."""

    async def list(self) -> list[Runtime]:
        """Every runtime."""


class LocalBackend:
    """Sandboxes by bubblewrap, each with a keeper process that outlives the gateway.

    `pools` are the warm pools of the configuration. `cgroup_parent` is where cgroups are made instead of
    below the gateway's own. `insecure` starts plain processes without any isolation, and says so.
    """

    name = "local"
    shared = False
    extends = True

    def __init__(
        self,
        data_dir: Path,
        runtimes: RuntimeSource,
        egress: EgressProxy | None = None,
        *,
        pools: Sequence[WarmPoolSpec] = (),
        insecure: bool = False,
        cgroup_parent: str | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._runtimes = runtimes
        self._egress = egress
        self._configured = tuple(pools)
        self._insecure = insecure
        self._cgroup_parent = cgroup_parent
        self._claiming: dict[str, asyncio.Task[Claim]] = {}
        self._filling: asyncio.Task[None] | None = None
        self._lifeline = (-1, -1)
        # How many sandboxes a pool that wants so many may have.
        self.on_growth: Callable[[WarmPoolSpec, int], int] = lambda pool, wanted: wanted
        preparing = _not_ready("Preparing", "its runtime is being prepared")
        self._unfilled = {pool.key: preparing for pool in self._configured}

    # -- start and stop ----------------------------------------------------------------------------

    async def start(self) -> None:
        """See SandboxBackend. Raises ApiError with what to do when sandboxes cannot be isolated here."""
        self._host: Host = await asyncio.to_thread(
            machine.find, self._data_dir, self._insecure, self._cgroup_parent
        )
        if self._insecure:
            log.warning(
                "SANDBOXES ARE NOT ISOLATED (--insecure-no-isolation): "
                "code in them can do whatever user %d can on this machine",
                os.getuid(),
            )
        self._lifeline = os.pipe()
        self._registry = Registry(self._host, self._egress, self._sandbox_ended)
        self._starts = Starts()
        self._pools = Pools(
            self._start_warm,
            self._end_warm,
            self._assigned,
            lambda pool, wanted: self.on_growth(pool, wanted),
            self._starts,
        )
        await self._registry.start()
        self._filling = asyncio.create_task(self._fill(), name="configured warm pools")

    async def stop(self) -> None:
        """See SandboxBackend. Nothing to do when `start` failed."""
        if self._filling is None:
            return
        self._filling.cancel()
        await asyncio.gather(self._filling, *self._claiming.values(), return_exceptions=True)
        await self._pools.stop()
        await self._registry.stop()
        for descriptor in self._lifeline:
            os.close(descriptor)

    async def _fill(self) -> None:
        await asyncio.gather(*(self._fill_one(pool) for pool in self._configured))

    async def _fill_one(self, pool: WarmPoolSpec) -> None:
        """Each by itself: a runtime that takes long, or fails, holds up no other pool."""
        try:
            await self.apply_pool(pool)
        except (ApiError, OSError) as error:
            log.error("warm pool %s cannot be kept: %s", pool.name, error)
            self._unfilled[pool.key] = _not_ready("RuntimeUnavailable", str(error))

    # -- claim -------------------------------------------------------------------------------------

    async def claim(self, spec: SandboxSpec) -> Claim:
        """See SandboxBackend. Nothing is left of a claim that fails."""
        _check(spec)
        task = self._claiming.get(spec.sandbox_id)
        if task is None:
            entry = self._registry.get(spec.sandbox_id)
            if entry is not None:
                return _as_claim(entry)
            task = asyncio.create_task(self._claim(spec), name=f"claim {spec.sandbox_id}")
            self._claiming[spec.sandbox_id] = task
            task.add_done_callback(lambda _: self._claiming.pop(spec.sandbox_id, None))
        return await asyncio.shield(task)

    async def _claim(self, spec: SandboxSpec) -> Claim:
        runtime, warnings = await self._runtimes.resolve(spec.runtime)
        while True:
            taken = await self._take(spec, runtime)
            if taken.entry is None:
                async with self._starts.turn() as waited:
                    if waited:  # a warm one may have come meanwhile
                        taken = await self._take(spec, runtime)
                    if taken.entry is None:
                        return await self._claim_cold(spec, runtime, _start_of(taken, warnings), taken.pool)
            claimed = _claimed(spec, _start_of(taken, warnings))
            async with self._undone(taken.entry):
                if await self._registry.claim(taken.entry, claimed):
                    return _as_claim(taken.entry)

    async def _take(self, spec: SandboxSpec, runtime: PreparedRuntime) -> Taken:
        return await self._unfilled_pool(spec, runtime) or self._pools.take(spec, runtime.id)

    async def _unfilled_pool(self, spec: SandboxSpec, runtime: PreparedRuntime) -> Taken | None:
        """What a request gets that names a configured pool which nothing was started for yet."""
        unfilled = [pool for pool in self._configured if pool.key in self._unfilled]
        if not any(pool.name == spec.warm_pool for pool in unfilled):
            return None
        pool = planning.named(spec, (*self._pools.specs, *unfilled))
        if pool.key not in self._unfilled:
            return None
        prepared, _ = await self._runtimes.resolve(pool.runtime)
        planning.check_named(spec, runtime.id, pool, prepared.id)
        return Taken(None, f"the warm pool {pool.name} is not filled yet", pool)

    async def _claim_cold(
        self, spec: SandboxSpec, runtime: PreparedRuntime, start: Start, pool: WarmPoolSpec | None
    ) -> Claim:
        """Start a sandbox for this request alone, with what `pool`, if the request named one, preloads."""
        tell("Cold", f"a sandbox is started for it: {start.reason}")
        recipe = Recipe(
            runtime=runtime,
            resources=spec.resources,
            security_level=spec.security_level,
            preload_packages=pool.preload_packages if pool is not None else (),
            preload_scripts=pool.preload_scripts if pool is not None else (),
            env=early(spec.env),
        )
        claimed = _claimed(spec, start)
        entry, _ = await self._start(recipe, None, claimed)
        async with self._undone(entry):
            await self._registry.settle(entry)
        return _as_claim(entry)

    @contextlib.asynccontextmanager
    async def _undone(self, entry: Entry) -> AsyncIterator[None]:
        """End a sandbox whose claim fails on the way: whoever asked for it hears the error and no end."""
        try:
            yield
        except BaseException:
            await self._registry.end(entry, "failed")
            self._registry.forget(entry)
            raise

    async def _start(
        self, recipe: Recipe, pool: str | None, claimed: Claimed | None
    ) -> tuple[Entry, list[str]]:
        """Start a sandbox and wait until it is ready; nothing is left of one that fails."""
        started = asyncio.ensure_future(asyncio.to_thread(self._launch, recipe, pool, claimed))
        try:
            state = await asyncio.shield(started)
        except asyncio.CancelledError:
            with contextlib.suppress(ApiError, OSError):
                await self._registry.end(self._registry.add(await started), "terminated")
            raise
        entry = self._registry.add(state, claimed)
        try:
            status = await launch.ready(entry.folder, state.token)
        except BaseException as error:
            record = await self._registry.end(entry, "terminated")
            self._registry.forget(entry)
            if isinstance(error, ApiError) and record is not None and record.message:
                raise launch.unavailable(f"{error.message} ({record.message})") from error
            raise
        return entry, status.problems

    def _launch(self, recipe: Recipe, pool: str | None, claimed: Claimed | None) -> State:
        egress = self._egress is not None
        lifeline = self._lifeline[0]
        return launch.start(self._host, recipe, lifeline=lifeline, pool=pool, claimed=claimed, egress=egress)

    async def record(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """See SandboxBackend. The claim was made durable when it was made: only its life is looked at.

        Raises ApiError(not_found) when the sandbox has ended meanwhile.
        """
        self._entry(claim.sandbox_id)

    async def stored(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """See SandboxBackend. Raises OSError when the limit on its processor cannot be set."""
        entry = self._entry(claim.sandbox_id)
        bound = Bound(
            runtime=spec.runtime,
            security_level=spec.security_level,
            resources=spec.resources,
            limits=spec.limits,
            use_warm_pool=spec.use_warm_pool,
            context_id=bind.context_id,
            language=bind.language,
            metadata=bind.labels,
            since=time.time(),
        )
        self._registry.bind(entry, bound)

    async def hold_end(self, sandbox_id: str) -> None:
        """See SandboxBackend."""
        self._registry.hold(sandbox_id)

    async def noted(self, sandbox_id: str) -> None:
        """See SandboxBackend."""
        self._registry.noted(sandbox_id)

    # -- living sandboxes --------------------------------------------------------------------------

    async def set_lifetime(self, sandbox_id: str, seconds: float) -> None:
        """See SandboxBackend. Its keeper has a clock of its own."""
        entry = self._registry.get(sandbox_id)
        if entry is not None:
            launch.set_lifetime(entry.folder, seconds + LIFE_MARGIN)

    async def dial(self, sandbox_id: str, open_: Open) -> FrameStream:
        """See SandboxBackend."""
        entry = self._entry(sandbox_id)
        try:
            return await launch.dial(entry.folder, entry.state.token, open_)
        except (ProofError, OSError) as error:
            raise launch.unavailable(f"the sandbox {sandbox_id} cannot be reached: {error}") from error

    async def find(self, sandbox_id: str) -> Place | None:
        """See SandboxBackend."""
        entry = self._registry.get(sandbox_id)
        return _as_place(entry) if entry is not None else None

    async def living(self) -> list[Place]:
        """See SandboxBackend."""
        return [_as_place(entry) for entry in self._registry.claimed()]

    async def strangers(self) -> list[Stranger]:
        """See SandboxBackend. Only the gateway makes sandboxes here: these are for a store that was lost."""
        return [
            _as_stranger(entry, entry.claimed, entry.bound)
            for entry in self._registry.claimed()
            if entry.claimed is not None and entry.bound is not None
        ]

    async def quarantined(self) -> list[Quarantined]:
        """See SandboxBackend."""
        return self._registry.quarantined()

    async def fate(self, sandbox_id: str) -> Ended | None:
        """See SandboxBackend."""
        return self._registry.fate(sandbox_id)

    async def destroy(self, sandbox_id: str, end: str = "terminated") -> bool:
        """See SandboxBackend."""
        claiming = self._claiming.get(sandbox_id)
        if claiming is not None:
            await asyncio.wait([claiming])
        entry = self._registry.get(sandbox_id)
        if entry is None:
            return False
        await self._registry.end(entry, end)
        return True

    def watch(self) -> AsyncGenerator[Ended, None]:
        """See SandboxBackend. For one reader: an end counts as heard when the next one is asked for."""
        return self._registry.news()

    async def runtimes(self) -> list[Runtime]:
        """See SandboxBackend."""
        return await self._runtimes.list()

    async def profiles(self) -> list[Profile]:
        """See SandboxBackend."""
        return list(PROFILES)

    def _entry(self, sandbox_id: str) -> Entry:
        entry = self._registry.get(sandbox_id)
        if entry is None:
            raise ApiError("not_found", f"there is no living sandbox {sandbox_id}")
        return entry

    # -- pools -------------------------------------------------------------------------------------

    async def pools(self, tenant: str | None = None) -> list[WarmPoolSpec] | None:
        """See SandboxBackend. They end with the process; the store remembers them."""
        return None

    def capacity(self) -> Resources | None:
        """See SandboxBackend. This machine's."""
        return machine.capacity(self._data_dir)

    async def apply_pool(self, pool: WarmPoolSpec) -> None:
        """See SandboxBackend."""
        runtime, _ = await self._runtimes.resolve(pool.runtime)
        recipe = Recipe(
            runtime=runtime,
            resources=pool.resources,
            security_level=pool.security_level,
            preload_packages=pool.preload_packages,
            preload_scripts=pool.preload_scripts,
        )
        self._unfilled.pop(pool.key, None)
        self._pools.apply(pool, recipe)

    async def delete_pool(self, pool: WarmPoolSpec) -> None:
        """See SandboxBackend."""
        self._unfilled.pop(pool.key, None)
        await self._pools.delete(pool.key)

    async def pool_status(self, pool: WarmPoolSpec) -> WarmPoolStatus:
        """See SandboxBackend."""
        if pool.key in self._unfilled:
            return WarmPoolStatus(conditions=(self._unfilled[pool.key],))
        return self._pools.status(pool)

    async def _start_warm(self, recipe: Recipe, pool: str) -> tuple[Entry, list[str]]:
        return await self._start(recipe, pool, None)

    async def _end_warm(self, entry: Entry) -> None:
        await self._registry.end(entry, "terminated")

    def _assigned(self, pool: str) -> int:
        return sum(1 for entry in self._registry.claimed() if entry.state.pool == pool)

    def _sandbox_ended(self, entry: Entry) -> None:
        self._pools.ended(entry)


def _not_ready(reason: str, message: str) -> Condition:
    return Condition(
        type="Ready", status="False", reason=reason, message=message, last_transition_time=time.time()
    )


def _start_of(taken: Taken, warnings: tuple[str, ...]) -> Start:
    pool = taken.pool
    return Start(
        kind="cold" if taken.entry is None else "warm",
        reason=taken.reason,
        warnings=warnings,
        pool=pool.name if pool is not None else None,
        pool_owner=pool.said_owner if pool is not None else None,
    )


def _claimed(spec: SandboxSpec, start: Start) -> Claimed:
    return Claimed(
        sandbox_id=spec.sandbox_id,
        owner=spec.owner,
        tenant=spec.tenant,
        start=start,
        egress=spec.egress,
        max_lifetime=spec.limits.max_lifetime,
    )


def _check(spec: SandboxSpec) -> None:
    """What a door lets in and this backend could not serve is refused before anything is made."""
    try:
        to_rules(spec.egress)
    except ValueError as error:
        raise ApiError("invalid_request", f"egress: {error}", {"field": "egress"}) from error


def _as_stranger(entry: Entry, claimed: Claimed, bound: Bound) -> Stranger:
    return Stranger(
        spec=SandboxSpec(
            sandbox_id=claimed.sandbox_id,
            runtime=bound.runtime,
            owner=claimed.owner,
            tenant=claimed.tenant,
            security_level=bound.security_level,
            resources=bound.resources,
            egress=claimed.egress,
            use_warm_pool=bound.use_warm_pool,
            limits=bound.limits,
        ),
        claim=_as_claim(entry),
        context_id=bound.context_id,
        started_at=bound.since,
        language=bound.language,
        metadata=bound.metadata,
        owner_is_id=True,
    )


def _as_claim(entry: Entry) -> Claim:
    if entry.claimed is None:
        raise ApiError("internal_error", "the sandbox is not claimed")
    return Claim(
        sandbox_id=entry.claimed.sandbox_id,
        runtime=entry.state.runtime,
        languages=entry.state.languages,
        start=entry.claimed.start,
        isolation=entry.state.isolation,
    )


def _as_place(entry: Entry) -> Place:
    return Place(
        sandbox_id=entry.claimed.sandbox_id if entry.claimed is not None else "",
        runtime=entry.state.runtime,
        started_at=entry.state.started_at,
        isolation=entry.state.isolation,
    )
