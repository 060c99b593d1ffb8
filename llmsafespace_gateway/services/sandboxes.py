"""Use cases: create, find, change and end sandboxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from llmsafespace_gateway.access.principal import SANDBOXES_READ, SANDBOXES_WRITE
from llmsafespace_gateway.errors import ApiError, invalid
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.services.base import Caller, Service
from llmsafespace_gateway.store import kernels, sandboxes
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.requests import Empty, Limits, Status

CREATE = "sandbox.create"
UPDATE = "sandbox.update"
DELETE = "sandbox.delete"


class SandboxService(Service):
    """Methods that take a row rely on the caller's right to it, which `allowed` or the route has checked."""

    async def page(
        self, caller: Caller, *, state: str | None, limit: int, after: str | None
    ) -> tuple[list[tuple[SandboxRow, str | None]], str | None]:
        """Sandboxes that the caller may see, with their default contexts; the next `after`."""
        rows = await self.access.list_sandboxes(
            caller.principal, states=[state] if state else None, limit=limit + 1, after=after
        )
        shown = rows[:limit]
        found = await kernels.defaults_of(self.store, [row.id for row in shown])
        items = [(row, kernel.id if (kernel := found.get(row.id)) else None) for row in shown]
        return items, shown[-1].id if len(rows) > limit else None

    async def default_context(self, sandbox_id: str) -> str | None:
        """The id of the context that a sandbox began with."""
        found = await kernels.of_sandbox(self.store, sandbox_id)
        return next((kernel.id for kernel in found if kernel.is_default), None)

    def may_create(self, caller: Caller) -> None:
        """Raises ApiError(forbidden), audited: for doors that look things up before they call `create`."""
        try:
            self.access.require(caller.principal, SANDBOXES_WRITE)
        except ApiError as error:
            self.refuse_request(caller, CREATE, error)
            raise

    async def create(self, caller: Caller, request: CreateSandbox) -> SandboxRow:
        """A new sandbox; a repeated request (see CreateSandbox) gives the one that is there. Raises ApiError.

        Repeated requests take no room in the quota and are not audited again, while the first is under way
        and afterwards.
        """
        self.may_create(caller)
        owner = Owner(caller.principal.user_id, caller.principal.tenant)
        known = await self.sandboxes.existing(owner, request)
        if known is not None:
            return known
        # No await between here and `Sandboxes.create`, which notes the request: two must not both reserve.
        if self.sandboxes.under_way(owner, request):
            return await self.sandboxes.create(owner, request)
        with (
            self.act(caller, CREATE, runtime=request.runtime) as act,
            self.access.reserve(caller.principal, request.resources) as room,
        ):
            row = await self.sandboxes.create(owner, request)
            if row.state != "ended":
                room.commit(row.id)
            act.target = row.id
            act.details |= {"runtime": row.runtime, "start": row.start_kind}
        self.metrics.starts.labels(row.start_kind).inc()
        return row

    async def change(self, caller: Caller, row: SandboxRow, changes: dict[str, Any]) -> SandboxRow:
        """Change `metadata`, `timeout`, `idle_timeout`, `max_lifetime`: the agent first, then the record.

        Raises ApiError: gone, invalid_request.
        """
        if row.state == "ended":
            end = row.end or "lost"
            raise ApiError("gone", f"the sandbox has ended: {end}; create another", {"end": end})
        changed = msgspec.structs.replace(row, **changes)
        if changed.max_lifetime > row.max_lifetime and not self.backend.extends:
            raise invalid(
                "body.maxLifetime", f"expected at most {row.max_lifetime:g}: it can only be shortened here"
            )
        if not changes:
            return row
        with self.act(caller, UPDATE, row.id, fields=sorted(changes)):
            if changes.keys() - {"metadata"}:
                limits = Limits(
                    timeout=changed.timeout,
                    idle_timeout=changed.idle_timeout,
                    max_lifetime=changed.max_lifetime,
                )
                await self.sandboxes.set_limits(row, limits)
            await sandboxes.update(self.store, row.tenant, row.id, **changes)
        return changed

    async def delete(self, caller: Caller, row: SandboxRow) -> None:
        """End a sandbox. One that has ended already stays as it ended."""
        if row.state != "ended":
            with self.act(caller, DELETE, row.id):
                await self.sandboxes.delete(row.id)

    async def status(self, caller: Caller, row: SandboxRow) -> tuple[SandboxRow, Status | None]:
        """How a sandbox is now, as its agent says; None where it has ended."""
        if row.state == "running":
            try:
                return row, await self.sandboxes.rpc(row.id, "status", Empty())
            except ApiError as error:
                if error.code != "gone":
                    raise
        return await self.access.sandbox(caller.principal, row.id, SANDBOXES_READ), None

    def on_ended(self, row: SandboxRow, callback: Callable[[str, str | None], None]) -> Callable[[], None]:
        """Call `callback(end, message)` once when a sandbox ends; returns how to unsubscribe."""
        return self.sandboxes.on_ended(row.id, lambda ended: callback(ended.end, ended.message))
