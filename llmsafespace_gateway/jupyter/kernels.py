"""`/api/kernels`: a kernel of the list is a context of a sandbox; the default one's life is the sandbox's."""

from __future__ import annotations

from llmsafespace_gateway.access.principal import EXECUTE, SANDBOXES_READ
from llmsafespace_gateway.jupyter.base import JupyterHandler
from llmsafespace_gateway.jupyter.kernelspecs import resolve
from llmsafespace_gateway.jupyter.models import (
    KernelBody,
    clean_env,
    decoded,
    kernel_model,
    kernel_uuid,
    text,
)
from llmsafespace_gateway.services.types import CreateSandbox


class KernelsHandler(JupyterHandler):
    """What the routes that start kernels share."""

    async def kernel_request(self, body: KernelBody) -> CreateSandbox:
        """The sandbox for the kernel that a Jupyter client asks for. Raises ApiError."""
        self.services.sandboxes.may_create(self.caller)
        kernel_id, env = kernel_uuid(body.kernel_id), clean_env(body.env)
        path, name = text(body.path, "path"), text(body.name, "name") or None
        kernel = resolve(name, await self.services.runtimes.all(), self.services.default_runtime)
        return CreateSandbox(
            runtime=kernel.runtime,
            language=kernel.language,
            kernel_name=kernel.name,
            kernel_id=kernel_id,
            env=env,
            path=path,
            warm_pool=text(body.warm_pool, "warm_pool") or None,
        )


class KernelList(KernelsHandler):
    """`/api/kernels`"""

    async def get(self) -> None:
        """The kernels that the caller may see."""
        self.answer([kernel_model(kernel) for kernel in await self.services.kernels.all(self.caller)])

    async def post(self) -> None:
        """Start a kernel. The same `kernel_id` again gives the same kernel."""
        body: KernelBody = decoded(self.body, KernelBody) if self.body else KernelBody()
        row, kernel = await self.services.kernels.start(self.caller, await self.kernel_request(body))
        self.answer(kernel_model(kernel, row), 201, f"/api/kernels/{kernel.id}")


class KernelItem(JupyterHandler):
    """`/api/kernels/{id}`"""

    async def get(self, kernel_id: str) -> None:
        """One kernel, as its agent describes it."""
        row, kernel = await self.services.kernels.find(self.caller, kernel_id, SANDBOXES_READ)
        self.answer(kernel_model(await self.services.kernels.seen(row, kernel), row))

    async def delete(self, kernel_id: str) -> None:
        """End a kernel."""
        found = await self.services.kernels.find(self.caller, kernel_id, SANDBOXES_READ)
        await self.services.kernels.shut_down(self.caller, *found)
        self.answer(None, 204)


class KernelAction(JupyterHandler):
    """`/api/kernels/{id}/interrupt` and `…/restart`"""

    async def post(self, kernel_id: str, action: str) -> None:
        """Interrupt (204) or restart (the model) a kernel."""
        row, kernel = await self.services.kernels.find(self.caller, kernel_id, EXECUTE)
        await self.services.kernels.signal(self.caller, row, kernel_id, action)
        if action == "interrupt":
            self.answer(None, 204)
        else:
            self.answer(kernel_model(await self.services.kernels.seen(row, kernel), row))
