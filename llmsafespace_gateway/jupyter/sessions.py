"""`/api/sessions`: a document and its kernel."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any
from weakref import WeakValueDictionary

from llmsafespace_gateway.access.principal import EXECUTE, SANDBOXES_READ
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.kernels import KernelsHandler
from llmsafespace_gateway.jupyter.models import (
    KernelWish,
    SessionKernel,
    SessionWish,
    kernel_uuid,
    session_model,
    text,
    wish,
)
from llmsafespace_gateway.store import kernels, sessions
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow, SessionRow

# Two requests at once for one document make one kernel.
_making: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()


class SessionsHandler(KernelsHandler):
    """What every route about sessions needs."""

    def read_wish(self) -> SessionWish:
        """The body, with what old clients send put in its place. Raises ApiError."""
        if not self.body:
            raise ApiError("invalid_request", "No JSON data provided")
        wanted: SessionWish = wish(self.body, SessionWish)
        if wanted.notebook is not None:
            wanted.type = "notebook"
            wanted.path = wanted.notebook.path or wanted.notebook.name or wanted.path
        for field in ("path", "name", "type"):
            text(getattr(wanted, field), field)
        return wanted

    async def kernel_for(self, wanted: SessionWish, path: str) -> tuple[SandboxRow, KernelRow]:
        """The kernel that a session asks for: one that is there, or a new one."""
        kernel = wanted.kernel or SessionKernel()
        if kernel.id:
            return await self.living(kernel_uuid(kernel.id) or kernel.id, EXECUTE)
        return await self.start(
            KernelWish(name=kernel.name, path=path, env=wanted.env, warm_pool=wanted.warm_pool)
        )

    def session(
        self, row: SessionRow, kernel: KernelRow, sandbox: SandboxRow | None = None
    ) -> dict[str, Any]:
        """The model of a session."""
        return session_model(row, self.model(kernel, sandbox))


class SessionList(SessionsHandler):
    """`/api/sessions`"""

    async def get(self) -> None:
        """The sessions that the caller may see."""
        rows = await self.access.list_sessions(self.principal)
        by_id = {kernel.id: kernel for kernel in await self.access.list_kernels(self.principal)}
        self.answer([self.session(row, by_id[row.kernel_id]) for row in rows if row.kernel_id in by_id])

    async def post(self) -> None:
        """Start a session; one of the same path and type that is there already is the answer."""
        wanted = self.read_wish()
        if wanted.path is None:
            raise ApiError("invalid_request", "Missing field in JSON data: path")
        if wanted.type is None:
            raise ApiError("invalid_request", "Missing field in JSON data: type")
        key = (self.principal.user_id, wanted.path, wanted.type)
        lock = _making.setdefault(key, asyncio.Lock())
        async with lock:
            row, kernel, sandbox = await self._found_or_made(wanted, wanted.path, wanted.type)
        self.answer(self.session(row, kernel, sandbox), 201, f"/api/sessions/{row.id}")

    async def _found_or_made(
        self, wanted: SessionWish, path: str, kind: str
    ) -> tuple[SessionRow, KernelRow, SandboxRow]:
        there = await sessions.by_path(self.store, self.principal.user_id, path, kind)
        if there is not None:
            found = await kernels.with_sandbox(self.store, there.tenant, there.kernel_id)
            if found is not None and found[0].state != "ended":
                self.access.require(self.principal, SANDBOXES_READ)
                return there, found[1], found[0]
            await sessions.delete(self.store, there.tenant, there.id)
        sandbox, kernel = await self.kernel_for(wanted, path)
        row = SessionRow(
            id=str(uuid.uuid4()),
            kernel_id=kernel.id,
            owner=self.principal.user_id,
            tenant=self.principal.tenant,
            path=path,
            name=wanted.name or "",
            type=kind,
        )
        await sessions.insert(self.store, row)
        return row, kernel, sandbox


class SessionItem(SessionsHandler):
    """`/api/sessions/{id}`"""

    async def get(self, session_id: str) -> None:
        """One session."""
        sandbox, kernel, row = await self._living(session_id, SANDBOXES_READ)
        self.answer(self.session(row, kernel, sandbox))

    async def patch(self, session_id: str) -> None:
        """Rename a session, or give it another kernel: the old one then ends."""
        wanted = self.read_wish()
        sandbox, kernel, row = await self._living(session_id, EXECUTE)
        old_sandbox, old_kernel = sandbox, kernel
        if wanted.kernel is not None and (wanted.kernel.id or wanted.kernel.name):
            await self.may_shut_down(old_sandbox, old_kernel)
            sandbox, kernel = await self.kernel_for(wanted, wanted.path or row.path)
        changes: dict[str, Any] = {"kernel_id": kernel.id}
        changes |= {
            field: value
            for field in ("path", "name", "type")
            if (value := getattr(wanted, field)) is not None
        }
        changed = await sessions.update(self.store, row.tenant, row.id, **changes)
        if changed is None:
            raise ApiError("not_found", f"session {session_id} is gone")
        if kernel.id != old_kernel.id:
            await self.shut_down(old_sandbox, old_kernel)
        self.answer(self.session(changed, kernel, sandbox))

    async def delete(self, session_id: str) -> None:
        """End a session and its kernel."""
        sandbox, kernel, row = await self._living(session_id, SANDBOXES_READ)
        await self.shut_down(sandbox, kernel)
        await sessions.delete(self.store, row.tenant, row.id)
        self.answer(None, 204)

    async def _living(self, session_id: str, scope: str) -> tuple[SandboxRow, KernelRow, SessionRow]:
        sandbox, kernel, row = await self.access.session(self.principal, session_id, scope)
        if sandbox.state == "ended":
            raise ApiError(
                "not_found", f"session {session_id} is gone: its sandbox has ended ({sandbox.end})"
            )
        return sandbox, kernel, row
