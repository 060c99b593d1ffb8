"""What all use cases share.

A use case is one method of a service. It takes the caller and a typed request, and does in this order:
authorize, validate, reserve, act, audit, count. The last two are done by `Service.act` alone, so that the
same act leaves the same audit entry and the same count through every door. A door decodes a request, calls
one method, and encodes what it returns. What it raises is an ApiError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.executions import Door
from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.backends.base import SandboxBackend
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.metrics import Metrics
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.store import Store
from llmsafespace_gateway.store.rows import SandboxRow


class Caller(msgspec.Struct, frozen=True):
    """Who asks, and through which door (rest, stream, jupyter, durable)."""

    principal: Principal
    door: Door


@dataclass(frozen=True)
class Parts:
    """The parts of the gateway that services work with."""

    access: Access
    sandboxes: Sandboxes
    store: Store
    backend: SandboxBackend
    metrics: Metrics
    default_runtime: str


@dataclass
class Act:
    """An act under way. Both become its audit entry: never put keys, code, env or file contents in it."""

    target: str
    details: dict[str, Any] = field(default_factory=dict)


# Errors that are audited even where nothing was about to be done.
REFUSALS = frozenset({"forbidden", "rate_limited", "quota_exceeded"})


class Service:
    """Base of every service."""

    def __init__(self, parts: Parts) -> None:
        self.access = parts.access
        self.sandboxes = parts.sandboxes
        self.store = parts.store
        self.backend = parts.backend
        self.metrics = parts.metrics
        self.configured_runtime = parts.default_runtime

    @contextlib.contextmanager
    def act(self, caller: Caller, action: str, target: str = "", **details: Any) -> Iterator[Act]:
        """Audit and count what is done inside: `ok`, or the code of the ApiError that ends it.

        Failures that a key causes again and again become a few entries with a count (see Refusals).
        """
        act = Act(target, details)
        try:
            yield act
        except ApiError as error:
            if self._takes(caller, action, error, always=True):
                self.access.refused(
                    caller.principal, action, act.target, error.code, door=caller.door, **act.details
                )
            raise
        self.access.audit(caller.principal, action, act.target, "ok", door=caller.door, **act.details)
        self.metrics.acts.labels(action, caller.door, "ok").inc()

    async def refuse(self, caller: Caller, action: str, sandbox_id: str, error: ApiError) -> None:
        """Audit and count `error` where it is a refusal that was not audited before.

        The sandbox is named only where it is one that the caller may see.
        """
        if self._takes(caller, action, error):
            await self.access.refused_on(caller.principal, action, sandbox_id, error.code, door=caller.door)

    def refuse_request(self, caller: Caller, action: str, error: ApiError) -> None:
        """Like `refuse`, of what is about no sandbox."""
        if self._takes(caller, action, error):
            self.access.refused(caller.principal, action, "", error.code, door=caller.door)

    def _takes(self, caller: Caller, action: str, error: ApiError, always: bool = False) -> bool:
        """Whether an error is to be audited; it is counted then."""
        if error.audited or not (always or error.code in REFUSALS):
            return False
        error.audited = True
        self.metrics.acts.labels(action, caller.door, error.code).inc()
        return True

    async def allowed(self, caller: Caller, action: str, sandbox_id: str, scope: str) -> SandboxRow:
        """A sandbox on which the caller may do `action`. Raises ApiError; a refusal is audited."""
        try:
            return await self.access.sandbox(caller.principal, sandbox_id, scope)
        except ApiError as error:
            await self.refuse(caller, action, sandbox_id, error)
            raise

    async def explained(self, sandbox_id: str, error: Exception) -> Exception:
        """`gone` with the honest end, where the sandbox has ended; else `error` itself."""
        return await self.sandboxes.explained(sandbox_id, error)
