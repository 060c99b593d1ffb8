"""The life of a sandbox: create, find, contexts, end.

A row is written last: it means that the sandbox was bound. Whatever fails before it, in whatever step, takes
the sandbox with it (`_create`); what dies with this process is found by reconciliation. How a sandbox ended
is said by `Ends` alone. While one is being ended, calls are answered with that end (`_dying`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import Claim, Ended, SandboxBackend, SandboxSpec
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes import specs
from llmsafespace_gateway.sandboxes.activity import Activity
from llmsafespace_gateway.sandboxes.agent_client import CALL_TIMEOUT, unreachable, written
from llmsafespace_gateway.sandboxes.agents import Agents
from llmsafespace_gateway.sandboxes.ends import Ends
from llmsafespace_gateway.sandboxes.overdue import Overdue
from llmsafespace_gateway.sandboxes.reconciliation import Reconciliation
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.sandboxes.rows import kernel_row, request_digest, sandbox_row
from llmsafespace_gateway.store import Store, kernels, sandboxes
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from llmsafespace_protocol.frames import FrameKind, FrameStream
from llmsafespace_protocol.requests import (
    BindRequest,
    ById,
    ContextCreate,
    FileInfo,
    Limits,
    Open,
    OpenFileWrite,
    PackagesInstall,
    Shutdown,
)

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 0.5  # for an agent to say that it tells its clients; one that is starved is not waited for
WRITE_BACK = 2.0
RETENTION = 30 * 86400.0  # how long ended sandboxes still answer
_CHUNK = 256 * 1024
_ENDING = 2.0  # seconds in which an agent that is gone must turn out to have ended with its sandbox


class Sandboxes:
    """Every sandbox of this deployment; any gateway process serves any of them."""

    def __init__(self, store: Store, backend: SandboxBackend) -> None:
        self._store = store
        self._backend = backend
        self._agents = Agents(backend)
        self._activity = Activity()
        self._creating: dict[str, asyncio.Task[SandboxRow]] = {}
        self._making: set[str] = set()  # between their claim and their row
        self._dying: dict[str, str] = {}  # being ended by this process, with the word
        self._undoing: set[asyncio.Task[bool]] = set()
        self._listeners: dict[str, set[Callable[[Ended], None]]] = {}
        self._ends = Ends(store, backend, self._let_go, self._making.__contains__, self._forget_kernels)
        self._reconciliation = Reconciliation(store, backend, self._ends.record, self._making.__contains__)
        self.overdue = Overdue(self.rpc, self.delete)
        self._tasks: list[asyncio.Task[None]] = []
        self.on_any_ended: Callable[[str], None] = lambda sandbox_id: None
        self.on_adopted: Callable[[SandboxRow], None] = lambda row: None

    async def start(self) -> None:
        """Bring records and living sandboxes together, then keep them together in the background."""
        self._reconciliation.on_adopted = self.on_adopted
        await self._reconciliation.once(settled=0.0)
        await sandboxes.forget_ended(self._store, time.time() - RETENTION)
        work = (self._follow(), self._write_back(), self._reconciliation.run())
        self._tasks = [asyncio.create_task(each) for each in work]

    async def stop(self) -> None:
        """Let go of every sandbox; they live on."""
        self.overdue.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._undoing, return_exceptions=True)
        await self._ends.stop()
        await self._flush_activity()
        self._agents.close()

    # -- create and end ----------------------------------------------------------------------------

    async def create(self, owner: Owner, request: CreateSandbox) -> SandboxRow:
        """A new sandbox, bound and running; a repeated wish (see CreateSandbox) gives the one that is there.

        Raises ApiError: invalid_request, runtime_unavailable, conflict (another wish under the same key),
        service_unavailable.
        """
        specs.check(request)
        key = request.idempotency_key or request.kernel_id
        if key is None:
            return await self._create(owner, request)
        mark = _mark(owner, key)
        task = self._creating.get(mark)
        if task is None:
            task = asyncio.ensure_future(self._create_once(owner, request))
            self._creating[mark] = task
            task.add_done_callback(lambda _: self._creating.pop(mark, None))
        row = await asyncio.shield(task)
        return _same_wish(row, request)

    def under_way(self, owner: Owner, request: CreateSandbox) -> bool:
        """True when this wish is being carried out here: `create` joins it, and makes nothing further."""
        key = request.idempotency_key or request.kernel_id
        return key is not None and _mark(owner, key) in self._creating

    async def existing(self, owner: Owner, request: CreateSandbox) -> SandboxRow | None:
        """What a repeated wish made the first time; None for a new one, or one without a key of its own.

        Raises ApiError(conflict), as `create`.
        """
        row = await self._existing(owner, request)
        return _same_wish(row, request) if row is not None else None

    async def delete(self, sandbox_id: str, end: str = "terminated") -> bool:
        """End a sandbox. False when it had ended already."""
        self._dying.setdefault(sandbox_id, end)
        try:
            if end == "terminated":  # the agent tells whoever waits for an execution
                with contextlib.suppress(ApiError):
                    await self._agents.call(sandbox_id, "shutdown", Shutdown(end=end), SHUTDOWN_TIMEOUT)
            elif self._backend.shared:  # else other gateways, who see it go, call it terminated
                await self._ends.record(Ended(sandbox_id=sandbox_id, end=end))
            self._agents.forget(sandbox_id)
            destroyed = await self._backend.destroy(sandbox_id, end)
            await self._ends.record(Ended(sandbox_id=sandbox_id, end=end))
        finally:
            self._dying.pop(sandbox_id, None)
        return destroyed

    def on_ended(self, sandbox_id: str, callback: Callable[[Ended], None]) -> Callable[[], None]:
        """Call `callback` once when the sandbox ends; returns how to unsubscribe."""
        listeners = self._listeners.setdefault(sandbox_id, set())
        listeners.add(callback)

        def unsubscribe() -> None:
            listeners.discard(callback)
            if not listeners and self._listeners.get(sandbox_id) is listeners:
                del self._listeners[sandbox_id]

        return unsubscribe

    async def set_limits(self, row: SandboxRow, limits: Limits) -> None:
        """Other limits of time from now on. Raises ApiError."""
        await self.rpc(row.id, "set_limits", limits)
        left = row.created_at + limits.max_lifetime - time.time()
        await self._backend.set_lifetime(row.id, max(0.0, left))

    # -- talk to the agent -------------------------------------------------------------------------

    async def rpc(
        self, sandbox_id: str, method: str, params: msgspec.Struct, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """One call to the agent (see METHODS). Raises ApiError, `gone` when the sandbox has ended."""
        try:
            return await self._agents.call(sandbox_id, method, params, timeout)
        except ApiError as error:
            raise await self.explained(sandbox_id, error) from error

    async def open(self, sandbox_id: str, open_: Open) -> FrameStream:
        """A stream of its own to the agent, accepted. Raises ApiError, `gone` when the sandbox has ended."""
        try:
            return await self._agents.open(sandbox_id, open_)
        except ApiError as error:
            raise await self.explained(sandbox_id, error) from error

    async def write_file(self, sandbox_id: str, path: str, content: bytes) -> FileInfo:
        """Write one whole file. Raises ApiError."""
        stream = await self.open(sandbox_id, OpenFileWrite(path=path, size=len(content)))
        try:
            for start in range(0, len(content), _CHUNK):
                stream.send(FrameKind.DATA, content[start : start + _CHUNK])
                await stream.drain()
            stream.send(FrameKind.END)
            return await _file_written(stream)
        finally:
            stream.close()

    # -- contexts ------------------------------------------------------------------------------------

    async def create_context(
        self, row: SandboxRow, wanted: ContextCreate, kernel_name: str = "", path: str = ""
    ) -> KernelRow:
        """A further kernel in a sandbox; the same id again gives the same one.

        Its record comes first: an id that is taken, by whomever, is refused before anything is made.
        Raises ApiError.
        """
        now = time.time()
        kernel = KernelRow(
            id=wanted.id,
            sandbox_id=row.id,
            name=kernel_name or wanted.name or wanted.language or "",
            language=wanted.language or "",
            created_at=now,
            last_activity=now,
            execution_state="starting",
            connections=0,
            is_default=False,
            path=path,
        )
        added = await kernels.insert(self._store, kernel)
        try:
            info = await self.rpc(row.id, "contexts.create", wanted)
        except BaseException as error:
            there = isinstance(error, ApiError) and error.code == "conflict"  # another request's, of this id
            if added and not there:
                await asyncio.shield(kernels.delete(self._store, row.id, kernel.id))
            raise
        changes = {
            "name": kernel.name or info.language,
            "language": info.language,
            "execution_state": info.state,
        }
        return await kernels.update(self._store, row.id, kernel.id, **changes) or kernel

    async def remove_context(self, sandbox_id: str, context_id: str) -> None:
        """End a further kernel of a sandbox."""
        try:
            await self.rpc(sandbox_id, "contexts.remove", ById(id=context_id))
        except ApiError as error:
            gone = error.code == "not_found" and await kernels.delete(self._store, sandbox_id, context_id)
            if not gone:
                raise
        else:
            await kernels.delete(self._store, sandbox_id, context_id)
        self._activity.forget(context_id)

    def note_activity(self, kernel_id: str, *, state: str | None = None, connections_delta: int = 0) -> None:
        """The relay saw something on a kernel."""
        self._activity.note(kernel_id, state, connections_delta)

    def live_kernel(self, row: KernelRow) -> KernelRow:
        """`row` with what the relay has seen since it was written."""
        return self._activity.overlay(row)

    # -- inside ----------------------------------------------------------------------------------------

    async def _create_once(self, owner: Owner, request: CreateSandbox) -> SandboxRow:
        known = await self._existing(owner, request)
        if known is not None:
            return known
        try:
            return await self._create(owner, request)
        except ApiError as error:
            winner = await self._existing(owner, request) if error.code == "conflict" else None
            if winner is None:
                raise
            return winner  # the same wish, which another gateway process has fulfilled at the same time

    async def _existing(self, owner: Owner, request: CreateSandbox) -> SandboxRow | None:
        if request.idempotency_key is not None:
            return await sandboxes.by_idempotency_key(self._store, owner.user_id, request.idempotency_key)
        if request.kernel_id is None:
            return None
        found = await kernels.with_sandbox(self._store, owner.tenant, request.kernel_id)
        if found is not None and found[0].owner == owner.user_id and found[0].state != "ended":
            return found[0]
        if await kernels.taken(self._store, request.kernel_id):
            raise kernels.id_taken()
        return None

    async def _create(self, owner: Owner, request: CreateSandbox) -> SandboxRow:
        sandbox_id = f"sb-{secrets.token_hex(10)}"
        spec = SandboxSpec(
            sandbox_id=sandbox_id,
            runtime=request.runtime,
            owner=owner.user_id,
            tenant=owner.tenant,
            security_level=request.security_level,
            resources=request.resources,
            egress=request.egress,
            use_warm_pool=request.use_warm_pool,
            warm_pool=request.warm_pool,
            limits=_limits(request),
            env=request.env,
        )
        self._making.add(sandbox_id)
        try:
            try:
                claim = await self._backend.claim(spec)
            except ApiError as error:
                raise specs.blamed(error, request.env) from error
            return await self._make_personal(owner, request, spec, claim)
        except BaseException:
            undoing = asyncio.ensure_future(self._undo(sandbox_id))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            await asyncio.shield(undoing)
            raise
        finally:
            self._making.discard(sandbox_id)

    async def _undo(self, sandbox_id: str) -> bool:
        """Leave nothing of a sandbox that could not be made; reconciliation tries again where that fails."""
        try:
            destroyed = await self.delete(sandbox_id, "failed")
            await self._backend.noted(sandbox_id)
        except Exception:
            log.exception("sandbox %s could not be made, and something of it may be left", sandbox_id)
            return False
        return destroyed

    async def _make_personal(
        self, owner: Owner, request: CreateSandbox, spec: SandboxSpec, claim: Claim
    ) -> SandboxRow:
        bind = _bind_request(request, claim)
        row = sandbox_row(owner, request, claim, self._backend.name)
        kernel = kernel_row(request, claim, bind.context_id)
        made = await asyncio.gather(
            self._bind(row, request, bind), self._backend.record(claim, spec, bind), return_exceptions=True
        )
        for failure in made:  # looked at only now: neither goes on while the sandbox is removed
            if isinstance(failure, BaseException):
                raise failure
        await sandboxes.insert(self._store, row, kernel)  # last: a row means that the sandbox was bound
        await self._backend.stored(claim, spec, bind)
        self._making.discard(row.id)
        ended = await self._backend.fate(row.id)
        if ended is None:
            return row
        await self._ends.record(ended)
        return await sandboxes.get(self._store, row.id) or row

    async def _bind(self, row: SandboxRow, request: CreateSandbox, bind: BindRequest) -> None:
        await self._agents.call(row.id, "bind", bind)
        await self._backend.set_lifetime(row.id, request.max_lifetime)
        await asyncio.gather(*(self.write_file(row.id, path, data) for path, data in request.files.items()))
        if row.setup_command is not None:
            install = PackagesInstall(id=row.setup_command, packages=list(request.packages), gate=True)
            await self._agents.call(row.id, "packages.install", install)

    async def explained(self, sandbox_id: str, error: Exception) -> Exception:
        """`gone` with the honest end, where the sandbox has ended or is about to; else `error` itself."""
        unreachable = isinstance(error, ConnectionError) or (
            isinstance(error, ApiError) and error.code == "service_unavailable"
        )
        if not unreachable and not (isinstance(error, ApiError) and error.code == "not_found"):
            return error
        end = self._dying.get(sandbox_id) or await self._end_of(sandbox_id, _ENDING if unreachable else 0.0)
        if end is None:
            return error
        return ApiError("gone", f"the sandbox has ended: {end}; create another", {"end": end})

    async def _end_of(self, sandbox_id: str, patience: float) -> str | None:
        """How a sandbox ended; an agent that has just gone away gets `patience` seconds to turn out so."""
        told = asyncio.Event()
        unsubscribe = self.on_ended(sandbox_id, lambda _: told.set())
        try:
            fate = await self._backend.fate(sandbox_id)
            if fate is None and patience:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await told.wait()
                fate = await self._backend.fate(sandbox_id)
        finally:
            unsubscribe()
        if fate is None:
            return None
        row = await sandboxes.get(self._store, sandbox_id)
        return (row.end if row is not None else None) or fate.end

    async def _follow(self) -> None:
        async for news in self._backend.watch():
            try:
                if isinstance(news, Ended):
                    await self._ends.record(news)
                else:
                    await self._reconciliation.adopt(news)
            except Exception:
                log.exception("what became of a sandbox could not be recorded")

    def _let_go(self, ended: Ended) -> None:
        """A sandbox is no more, whether or not that is written yet."""
        self._agents.forget(ended.sandbox_id)
        self.overdue.forget(ended.sandbox_id)
        self.on_any_ended(ended.sandbox_id)
        for callback in list(self._listeners.pop(ended.sandbox_id, ())):
            callback(ended)

    async def _forget_kernels(self, sandbox_id: str) -> None:
        for kernel_id in await kernels.ids_of(self._store, sandbox_id):
            self._activity.forget(kernel_id)

    async def _write_back(self) -> None:
        while True:
            await asyncio.sleep(WRITE_BACK)
            try:
                await self._flush_activity()
            except Exception:
                log.exception("kernel activity could not be written back")

    async def _flush_activity(self) -> None:
        dirty = self._activity.take_dirty()
        if dirty:
            await kernels.note_activity(self._store, dirty)


async def _file_written(stream: FrameStream) -> FileInfo:
    """The agent's answer to a whole written file. Raises ApiError: its refusal, or service_unavailable."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT):
            kind, body = await stream.next_frame()
        if kind != FrameKind.JSON:
            raise unreachable()
        return written(body)
    except (TimeoutError, ConnectionError, msgspec.MsgspecError) as error:
        raise unreachable() from error


def _mark(owner: Owner, key: str) -> str:
    return f"{owner.user_id}\n{key}"


def _same_wish(row: SandboxRow, request: CreateSandbox) -> SandboxRow:
    if request.idempotency_key is not None and row.request_digest != request_digest(request):
        raise ApiError(
            "conflict",
            "this Idempotency-Key was used for another request; use a new key for a new sandbox",
            {"sandboxId": row.id},
        )
    return row


def _limits(request: CreateSandbox) -> Limits:
    return Limits(
        timeout=request.timeout, idle_timeout=request.idle_timeout, max_lifetime=request.max_lifetime
    )


def _bind_request(request: CreateSandbox, claim: Claim) -> BindRequest:
    return BindRequest(
        claim_id=claim.sandbox_id,
        sandbox_id=claim.sandbox_id,
        context_id=request.kernel_id or str(uuid.uuid4()),
        language=request.language,
        env=request.env,
        cwd=request.cwd,
        timezone=request.timezone,
        limits=_limits(request),
        egress_token=claim.egress_token,
        labels=request.metadata,
    )
