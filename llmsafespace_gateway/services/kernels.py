"""Use cases: kernels, which the REST API calls contexts, and Jupyter's sessions.

A kernel is a context of a sandbox. The life of the default one is the sandbox's: starting it is creating a
sandbox, and shutting it down is ending the sandbox, with the same audit entry, quota and count.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from llmsafespace_gateway.access.principal import EXECUTE, SANDBOXES_READ, SANDBOXES_WRITE
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.requests import CreateSandbox
from llmsafespace_gateway.services.base import Caller, Parts, Service
from llmsafespace_gateway.services.sandboxes import DELETE, SandboxService
from llmsafespace_gateway.store import kernels, sessions
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow, SessionRow
from llmsafespace_protocol.requests import ById, ContextCreate, ContextInfo, Empty


class KernelService(Service):
    """Kernels of sandboxes."""

    def __init__(self, parts: Parts, creation: SandboxService) -> None:
        super().__init__(parts)
        self._creation = creation

    async def all(self, caller: Caller) -> list[KernelRow]:
        """The kernels that the caller may see, as they are now."""
        rows = await self.access.list_kernels(caller.principal)
        return [self.sandboxes.live_kernel(row) for row in rows]

    async def find(self, caller: Caller, kernel_id: str, scope: str) -> tuple[SandboxRow, KernelRow]:
        """A kernel whose sandbox lives. Raises ApiError; not_found says how an ended sandbox ended."""
        row, kernel = await self.access.kernel(caller.principal, kernel_id, scope)
        if row.state == "ended":
            raise ApiError(
                "not_found",
                f"kernel {kernel_id} is gone: its sandbox has ended ({row.end})",
                {"end": row.end},
            )
        return row, self.sandboxes.live_kernel(kernel)

    async def start(self, caller: Caller, request: CreateSandbox) -> tuple[SandboxRow, KernelRow]:
        """A new sandbox and its kernel; the same `kernel_id` again gives the same. Raises ApiError."""
        row = await self._creation.create(caller, request)
        found = await kernels.of_sandbox(self.store, row.id)
        if not found:
            raise ApiError("service_unavailable", "the sandbox ended while it started; try again")
        return row, self.sandboxes.live_kernel(found[0])

    async def seen(self, row: SandboxRow, kernel: KernelRow) -> KernelRow:
        """The kernel as its agent describes it. Raises ApiError."""
        await self._ask(row, kernel.id, "get")
        return self.sandboxes.live_kernel(kernel)

    async def signal(self, caller: Caller, row: SandboxRow, context: str, method: str) -> ContextInfo:
        """Interrupt or restart a kernel. Variables survive an interrupt. Raises ApiError."""
        with self.act(caller, f"context.{method}", row.id, context=context):
            return await self._ask(row, context, method)

    async def of_sandbox(self, row: SandboxRow) -> list[ContextInfo]:
        """The kernels of a sandbox, as its agent describes them. Raises ApiError."""
        found: list[ContextInfo] = await self.sandboxes.rpc(row.id, "contexts.list", Empty())
        return found

    async def add(self, caller: Caller, row: SandboxRow, wanted: ContextCreate) -> ContextInfo:
        """A further kernel of a sandbox; the same id again gives the same one. Raises ApiError."""
        with self.act(caller, "context.create", row.id, context=wanted.id):
            await self.sandboxes.create_context(row, wanted)
        return await self._ask(row, wanted.id, "get")

    async def remove(self, caller: Caller, row: SandboxRow, context: str) -> None:
        """End a further kernel of a sandbox. Raises ApiError."""
        with self.act(caller, "context.delete", row.id, context=context):
            await self.sandboxes.remove_context(row.id, context)

    async def _ask(self, row: SandboxRow, context: str, method: str) -> ContextInfo:
        info: ContextInfo = await self.sandboxes.rpc(row.id, f"contexts.{method}", ById(id=context))
        self.sandboxes.note_activity(context, state=info.state)
        return info

    async def may_shut_down(self, caller: Caller, row: SandboxRow, kernel: KernelRow) -> None:
        """Raises ApiError, audited, where the caller may not end a kernel."""
        if kernel.is_default:
            await self.allowed(caller, DELETE, row.id, SANDBOXES_WRITE)
        else:
            await self.allowed(caller, "context.delete", row.id, EXECUTE)

    async def shut_down(self, caller: Caller, row: SandboxRow, kernel: KernelRow) -> None:
        """End a kernel, with its sandbox where it is the default one. Raises ApiError."""
        await self.may_shut_down(caller, row, kernel)
        if kernel.is_default:
            await self._creation.delete(caller, row)
        else:
            await self.remove(caller, row, kernel.id)


class SessionRequest(msgspec.Struct, frozen=True):
    """A session to make or change; what is None stays. `kernel` is an id, or a new one's request."""

    path: str | None
    name: str | None
    type: str | None
    kernel: str | CreateSandbox | None = None


class SessionService(Service):
    """Jupyter's sessions: a document and its kernel."""

    def __init__(self, parts: Parts, kernel_service: KernelService) -> None:
        super().__init__(parts)
        self._kernels = kernel_service
        # Two requests at once for one document make one kernel.
        self._making: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    async def all(self, caller: Caller) -> list[tuple[SessionRow, KernelRow]]:
        """The sessions that the caller may see."""
        rows = await self.access.list_sessions(caller.principal)
        by_id = {kernel.id: kernel for kernel in await self._kernels.all(caller)}
        return [(row, by_id[row.kernel_id]) for row in rows if row.kernel_id in by_id]

    async def find(
        self, caller: Caller, session_id: str, scope: str
    ) -> tuple[SandboxRow, KernelRow, SessionRow]:
        """A session whose sandbox lives. Raises ApiError."""
        sandbox, kernel, row = await self.access.session(caller.principal, session_id, scope)
        if sandbox.state == "ended":
            raise ApiError(
                "not_found", f"session {session_id} is gone: its sandbox has ended ({sandbox.end})"
            )
        return sandbox, self.sandboxes.live_kernel(kernel), row

    async def existing(
        self, caller: Caller, path: str, kind: str
    ) -> tuple[SandboxRow, KernelRow, SessionRow] | None:
        """The caller's session of a document, where its sandbox lives; a stale one is forgotten."""
        there = await sessions.by_path(self.store, caller.principal.user_id, path, kind)
        if there is None:
            return None
        found = await kernels.with_sandbox(self.store, there.tenant, there.kernel_id)
        if found is not None and found[0].state != "ended":
            self.access.require(caller.principal, SANDBOXES_READ)
            return found[0], self.sandboxes.live_kernel(found[1]), there
        await sessions.delete(self.store, there.tenant, there.id)
        return None

    def turn(self, caller: Caller, path: str, kind: str) -> asyncio.Lock:
        """To be held from `existing` to `start`."""
        return self._making.setdefault((caller.principal.user_id, path, kind), asyncio.Lock())

    async def start(self, caller: Caller, wanted: SessionRequest) -> tuple[SandboxRow, KernelRow, SessionRow]:
        """A new session. Raises ApiError."""
        if wanted.kernel is None:
            raise ApiError("invalid_request", "kernel: a new session needs one")
        sandbox, kernel = await self._kernel_of(caller, wanted.kernel)
        row = SessionRow(
            id=str(uuid.uuid4()),
            kernel_id=kernel.id,
            owner=caller.principal.user_id,
            tenant=caller.principal.tenant,
            path=wanted.path or "",
            name=wanted.name or "",
            type=wanted.type or "",
        )
        await sessions.insert(self.store, row)
        return sandbox, kernel, row

    async def change(
        self, caller: Caller, found: tuple[SandboxRow, KernelRow, SessionRow], wanted: SessionRequest
    ) -> tuple[SandboxRow, KernelRow, SessionRow]:
        """Rename a session, or give it another kernel: the old one then ends. Raises ApiError."""
        sandbox, kernel, row = found
        if wanted.kernel is not None:
            await self._kernels.may_shut_down(caller, *found[:2])
            sandbox, kernel = await self._kernel_of(caller, wanted.kernel)
        named = {field: getattr(wanted, field) for field in ("path", "name", "type")}
        changes: dict[str, Any] = {field: value for field, value in named.items() if value is not None}
        changed = await sessions.update(self.store, row.tenant, row.id, kernel_id=kernel.id, **changes)
        if changed is None:
            raise ApiError("not_found", f"session {row.id} is gone")
        if kernel.id != row.kernel_id:
            await self._kernels.shut_down(caller, *found[:2])
        return sandbox, kernel, changed

    async def delete(self, caller: Caller, found: tuple[SandboxRow, KernelRow, SessionRow]) -> None:
        """End a session and its kernel."""
        sandbox, kernel, row = found
        await self._kernels.shut_down(caller, sandbox, kernel)
        await sessions.delete(self.store, row.tenant, row.id)

    async def _kernel_of(self, caller: Caller, wanted: str | CreateSandbox) -> tuple[SandboxRow, KernelRow]:
        if isinstance(wanted, str):
            return await self._kernels.find(caller, wanted, EXECUTE)
        return await self._kernels.start(caller, wanted)
