"""`/api/sessions`: a document and its kernel."""

from __future__ import annotations

from llmsafespace_gateway.access.principal import EXECUTE, SANDBOXES_READ
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.jupyter.kernels import KernelsHandler
from llmsafespace_gateway.jupyter.models import (
    KernelBody,
    SessionBody,
    SessionKernel,
    decoded,
    kernel_uuid,
    session_model,
    text,
)
from llmsafespace_gateway.services.kernels import SessionRequest
from llmsafespace_gateway.services.types import CreateSandbox


class SessionsHandler(KernelsHandler):
    """What the routes that make or change sessions share."""

    def read_body(self) -> SessionBody:
        """The body, with what old clients send put in its place. Raises ApiError."""
        if not self.body:
            raise ApiError("invalid_request", "No JSON data provided")
        body: SessionBody = decoded(self.body, SessionBody)
        if body.notebook is not None:
            body.type = "notebook"
            body.path = body.notebook.path or body.notebook.name or body.path
        for field in ("path", "name", "type"):
            text(getattr(body, field), field)
        return body

    async def session_request(self, body: SessionBody, path: str) -> SessionRequest:
        """The session that a body asks for, with its kernel: one that is there, or a new one."""
        named = body.kernel or SessionKernel()
        kernel: str | CreateSandbox | None = kernel_uuid(named.id) if named.id else None
        if kernel is None:
            kernel = await self.kernel_request(
                KernelBody(name=named.name, path=path, env=body.env, warm_pool=body.warm_pool)
            )
        return SessionRequest(body.path, body.name, body.type, kernel)


class SessionList(SessionsHandler):
    """`/api/sessions`"""

    async def get(self) -> None:
        """The sessions that the caller may see."""
        self.answer([session_model(*found) for found in await self.services.sessions.all(self.caller)])

    async def post(self) -> None:
        """Start a session; one of the same path and type that is there already is the answer."""
        body = self.read_body()
        if body.path is None:
            raise ApiError("invalid_request", "Missing field in JSON data: path")
        if body.type is None:
            raise ApiError("invalid_request", "Missing field in JSON data: type")
        sessions = self.services.sessions
        async with sessions.turn(self.caller, body.path, body.type):
            found = await sessions.existing(self.caller, body.path, body.type)
            if found is None:
                found = await sessions.start(self.caller, await self.session_request(body, body.path))
        sandbox, kernel, row = found
        self.answer(session_model(row, kernel, sandbox), 201, f"/api/sessions/{row.id}")


class SessionItem(SessionsHandler):
    """`/api/sessions/{id}`"""

    async def get(self, session_id: str) -> None:
        """One session."""
        sandbox, kernel, row = await self.services.sessions.find(self.caller, session_id, SANDBOXES_READ)
        self.answer(session_model(row, kernel, sandbox))

    async def patch(self, session_id: str) -> None:
        """Rename a session, or give it another kernel: the old one then ends."""
        body = self.read_body()
        found = await self.services.sessions.find(self.caller, session_id, EXECUTE)
        if body.kernel is not None and (body.kernel.id or body.kernel.name):
            wanted = await self.session_request(body, body.path or found[2].path)
        else:
            wanted = SessionRequest(body.path, body.name, body.type)
        sandbox, kernel, row = await self.services.sessions.change(self.caller, found, wanted)
        self.answer(session_model(row, kernel, sandbox))

    async def delete(self, session_id: str) -> None:
        """End a session and its kernel."""
        found = await self.services.sessions.find(self.caller, session_id, SANDBOXES_READ)
        await self.services.sessions.delete(self.caller, found)
        self.answer(None, 204)
