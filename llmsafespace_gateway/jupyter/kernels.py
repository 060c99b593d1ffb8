"""`/api/kernels`: a kernel of the list is a context of a sandbox; the default one's life is the sandbox's."""

from __future__ import annotations

from llmsafespace_gateway.access.principal import EXECUTE, SANDBOXES_READ, SANDBOXES_WRITE
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.base import JupyterHandler
from llmsafespace_gateway.jupyter.kernelspecs import resolve
from llmsafespace_gateway.jupyter.models import (
    KernelWish,
    clean_env,
    kernel_model,
    kernel_uuid,
    text,
    wish,
)
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.store import kernels
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from llmsafespace_protocol.requests import ById, ContextInfo


class KernelsHandler(JupyterHandler):
    """What every route about kernels needs."""

    async def living(self, kernel_id: str, scope: str) -> tuple[SandboxRow, KernelRow]:
        """A kernel whose sandbox lives. Raises ApiError; not_found says how an ended one ended."""
        row, kernel = await self.access.kernel(self.principal, kernel_id, scope)
        if row.state == "ended":
            raise ApiError(
                "not_found",
                f"kernel {kernel_id} is gone: its sandbox has ended ({row.end})",
                {"end": row.end},
            )
        return row, kernel

    async def start(self, wanted: KernelWish) -> tuple[SandboxRow, KernelRow]:
        """A sandbox and its kernel, as a Jupyter client asks for one. Raises ApiError."""
        self.access.require(self.principal, SANDBOXES_WRITE)
        kernel_id = kernel_uuid(wanted.kernel_id)
        env = clean_env(wanted.env)
        path = text(wanted.path, "path")
        name = text(wanted.name, "name") or None
        kernel = resolve(name, await self.backend.runtimes(), self.default_runtime)
        request = CreateSandbox(
            runtime=kernel.runtime,
            language=kernel.language,
            kernel_name=kernel.name,
            kernel_id=kernel_id,
            env=env,
            path=path,
            warm_pool=text(wanted.warm_pool, "warm_pool") or None,
        )
        owner = Owner(self.principal.user_id, self.principal.tenant)
        row = await self.sandboxes.existing(owner, request)
        if row is None:
            with self.access.reserve(self.principal, request.resources) as room:
                row = await self.sandboxes.create(owner, request)
                room.commit(row.id)
            self.access.audit(self.principal, "sandbox.create", row.id, "allowed", kernel=kernel.name)
        found = await kernels.of_sandbox(self.store, row.id)
        if not found:
            raise ApiError("service_unavailable", "the sandbox ended while it started; try again")
        return row, found[0]

    async def may_shut_down(self, row: SandboxRow, kernel: KernelRow) -> None:
        """Raises ApiError where the caller may not end a kernel."""
        scope = SANDBOXES_WRITE if kernel.is_default else EXECUTE
        await self.access.sandbox(self.principal, row.id, scope)

    async def shut_down(self, row: SandboxRow, kernel: KernelRow) -> None:
        """End a kernel: with its sandbox where it is the default one. Raises ApiError."""
        await self.may_shut_down(row, kernel)
        if kernel.is_default:
            await self.sandboxes.delete(row.id)
            self.access.audit(self.principal, "sandbox.delete", row.id, "allowed")
        else:
            await self.sandboxes.remove_context(row.id, kernel.id)
            self.access.audit(self.principal, "context.delete", row.id, "allowed", context=kernel.id)

    def model(self, kernel: KernelRow, row: SandboxRow | None = None) -> dict[str, object]:
        """The kernel's model with what is known best here."""
        return kernel_model(self.sandboxes.live_kernel(kernel), row)


class KernelList(KernelsHandler):
    """`/api/kernels`"""

    async def get(self) -> None:
        """The kernels that the caller may see."""
        self.answer([self.model(row) for row in await self.access.list_kernels(self.principal)])

    async def post(self) -> None:
        """Start a kernel. The same `kernel_id` again gives the same kernel."""
        wanted: KernelWish = wish(self.body, KernelWish) if self.body else KernelWish()
        row, kernel = await self.start(wanted)
        self.answer(self.model(kernel, row), 201, f"/api/kernels/{kernel.id}")


class KernelItem(KernelsHandler):
    """`/api/kernels/{id}`"""

    async def get(self, kernel_id: str) -> None:
        """One kernel, as its agent knows it."""
        row, kernel = await self.living(kernel_id, SANDBOXES_READ)
        info: ContextInfo = await self.sandboxes.rpc(row.id, "contexts.get", ById(id=kernel.id))
        self.sandboxes.note_activity(kernel.id, state=info.state)
        self.answer(self.model(kernel, row) | {"execution_state": info.state})

    async def delete(self, kernel_id: str) -> None:
        """End a kernel."""
        row, kernel = await self.living(kernel_id, SANDBOXES_READ)
        await self.shut_down(row, kernel)
        self.answer(None, 204)


class KernelAction(KernelsHandler):
    """`/api/kernels/{id}/interrupt` and `…/restart`"""

    async def post(self, kernel_id: str, action: str) -> None:
        """Interrupt (204) or restart (the model) a kernel. Variables survive an interrupt."""
        row, kernel = await self.living(kernel_id, EXECUTE)
        info: ContextInfo = await self.sandboxes.rpc(row.id, f"contexts.{action}", ById(id=kernel.id))
        self.sandboxes.note_activity(kernel.id, state=info.state)
        self.access.audit(self.principal, f"context.{action}", row.id, "allowed", context=kernel.id)
        if action == "interrupt":
            self.answer(None, 204)
        else:
            self.answer(self.model(kernel, row) | {"execution_state": info.state})
