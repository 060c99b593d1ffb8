"""Executions, as access control sees them: each is limited, audited and counted once, whatever door it takes.

A door calls `admit` before it passes an execution on, and `note` when it knows what became of that: accepted,
or the code of the refusal. A refusal by `admit` itself is noted here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.access.rates import RateLimited, RateLimits
from llmsafespace_gateway.recent import Recent

Door = Literal["rest", "stream", "jupyter", "durable"]

ACTION = "sandbox.execute"
_REMEMBERED = 20_000
# Where a client's id names one execution: a request that is sent again, over another connection, is the same.
_IDEMPOTENT = frozenset({"rest", "stream", "durable"})


class ExecutionLog:
    """`audit(principal, action, target, outcome, **details)` writes down; `count(door, outcome)` counts."""

    def __init__(self, limits: RateLimits, audit: Callable[..., None], anonymous: Principal | None) -> None:
        self._limits = limits
        self._audit = audit
        self._anonymous = anonymous
        self._seen = Recent(_REMEMBERED)
        self.count: Callable[[str, str], None] = lambda door, outcome: None

    def admit(self, principal: Principal, sandbox_id: str, execution: str, door: Door) -> None:
        """May it run now? Raises RateLimited, which is noted then."""
        if principal is self._anonymous or self._known(sandbox_id, execution, door):
            return
        try:
            self._limits.execution(principal.key_id)
        except RateLimited as error:
            self.note(principal, sandbox_id, execution, door, error.code)
            raise

    def note(
        self,
        principal: Principal,
        sandbox_id: str,
        execution: str,
        door: Door,
        outcome: str = "ok",
        **details: Any,
    ) -> None:
        """An execution was accepted (`ok`), or refused with the code of an error."""
        if outcome == "ok":
            if self._known(sandbox_id, execution, door):
                return
            self._seen.add(f"{sandbox_id}/{execution}")
        self._audit(principal, ACTION, sandbox_id, outcome, execution=execution, door=door, **details)
        self.count(door, outcome)

    def _known(self, sandbox_id: str, execution: str, door: Door) -> bool:
        return door in _IDEMPOTENT and f"{sandbox_id}/{execution}" in self._seen
