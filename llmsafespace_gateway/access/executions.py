"""Executions, as access control sees them: each is limited, audited and counted once, whatever door it takes.

A use case calls `admit` before it passes an execution on, and `note` when it knows what became of that:
accepted, or the code of the refusal. A refusal by `admit` itself is noted here. Every refusal is counted; the
audit log has those that a key gets again and again as a few entries with a count.

Over a kernel's websocket an execution counts as accepted when it was sent to the sandbox, whose refusal comes
a moment later: then `refused_by_sandbox` takes the entry back and notes the refusal.

Where a client's id names one execution, a request that is sent again (over another connection, say) is the
same, and the agent does not run it again. Such a door gives the execution's `Mark`. The agent forgets the
oldest ids of a sandbox and would run them anew, so that here fewer are remembered than there. What another
process of the gateway passed on is found when the entry is written: its `key_of` is there already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from llmsafespace_gateway.access.audit import AuditLog
from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.access.rates import RateLimited, RateLimits
from llmsafespace_gateway.errors import STATUS
from llmsafespace_gateway.store.rows import AuditRow

Door = Literal["rest", "stream", "jupyter", "durable"]
Kind = Literal["code", "command"]

ACTION = "sandbox.execute"
COMMAND = "command.start"
PACKAGES = "packages.install"
ACTIONS = frozenset({ACTION, COMMAND, PACKAGES})
_SENT: tuple[Door, ...] = ("jupyter", "durable")  # what is refused by the sandbox is told later
_LATEST = 2_000  # accepted executions that their sandbox may still refuse
_REMEMBERED = 20_000  # of all sandboxes
_OF_SANDBOX: dict[Kind, int] = {"code": 5_000, "command": 128}  # half of what an agent keeps of each kind


class Mark(NamedTuple):
    """What an execution is: requests of one id and one mark are the same."""

    kind: Kind
    digest: bytes


def mark_of(kind: Kind, *content: Any) -> Mark:
    """The mark of what is to be run: code or command, and everything that it depends on."""
    return Mark(kind, hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest())


def key_of(sandbox_id: str, kind: Kind, execution: str) -> str:
    """What the audit log knows an execution by: the agent runs an id of a kind at most once."""
    name = f"{sandbox_id}\0{kind}\0{execution}".encode("utf-8", "replace")
    return hashlib.blake2b(name, digest_size=16).hexdigest()


class ExecutionLog:
    """`audit` takes what was accepted, `refused(principal, action, target, outcome, **details)` the rest.

    `count(door, outcome)` counts: what was accepted once its entry is written, as only then it is known
    whether another process has counted it.
    """

    def __init__(
        self,
        limits: RateLimits,
        audit: AuditLog,
        refused: Callable[..., None],
        anonymous: Principal | None,
    ) -> None:
        self._limits = limits
        self._audit = audit
        self._refused = refused
        self._anonymous = anonymous
        self._seen = _Seen()
        self._latest: dict[tuple[str, str, str], tuple[AuditRow, Mark | None]] = {}
        self.count: Callable[[str, str], None] = lambda door, outcome: None

    def admit(
        self,
        principal: Principal,
        sandbox_id: str,
        execution: str,
        door: Door,
        mark: Mark | None = None,
        **details: Any,
    ) -> None:
        """May it run now? Raises RateLimited, which is noted then."""
        if principal is self._anonymous or self._seen.has(sandbox_id, execution, mark):
            return
        try:
            self._limits.execution(principal.key_id)
        except RateLimited as error:
            error.audited = True
            self.note(principal, sandbox_id, execution, door, error.code, **details)
            raise

    def note(
        self,
        principal: Principal,
        sandbox_id: str,
        execution: str,
        door: Door,
        outcome: str = "ok",
        mark: Mark | None = None,
        *,
        action: str = ACTION,
        **details: Any,
    ) -> None:
        """An execution was accepted (`ok`), or refused with the code of an error."""
        details = {"execution": execution, "door": door, **details}
        if outcome != "ok":
            self._refused(principal, action, sandbox_id, outcome, **details)
            self.count(door, outcome)
        elif not self._seen.has(sandbox_id, execution, mark):
            again = mark is None or self._seen.knew(sandbox_id, execution, mark)
            self._seen.add(sandbox_id, execution, mark)
            row = self._audit.add_execution(
                (principal.tenant, principal.user_id, principal.key_id),
                action,
                sandbox_id,
                details,
                mark=key_of(sandbox_id, mark.kind if mark is not None else "code", execution),
                again=again,
                count=lambda: self.count(door, "ok"),
            )
            if door in _SENT:
                self._remember(principal, sandbox_id, execution, row, mark)

    def refused_by_sandbox(
        self, principal: Principal, sandbox_id: str, execution: str, door: Door, code: str
    ) -> None:
        """The sandbox refuses what was just noted as accepted; a refusal of anything else is ignored."""
        row, mark = self._latest.pop((sandbox_id, principal.user_id, execution), (None, None))
        if row is None:
            return
        self._audit.withdraw(row)
        self._seen.remove(sandbox_id, execution, mark)
        told = {name: value for name, value in row.details.items() if name not in ("execution", "door")}
        self.note(
            principal,
            sandbox_id,
            execution,
            door,
            code if code in STATUS else "invalid_request",
            action=row.action,
            **told,
            refusedBy="sandbox",
        )

    def complete(
        self, tenant: str, user: str | None, sandbox_id: str, kind: Kind, execution: str, at: float
    ) -> None:
        """Note what a killed process accepted and could not write any more."""
        self._audit.add_execution(
            (tenant, user, None),
            ACTION if kind == "code" else COMMAND,
            sandbox_id,
            {"execution": execution, "door": "unknown", "completed": True},
            mark=key_of(sandbox_id, kind, execution),
            again=False,
            count=lambda: self.count("unknown", "ok"),
            at=at,
        )

    def _remember(
        self, principal: Principal, sandbox_id: str, execution: str, row: AuditRow, mark: Mark | None
    ) -> None:
        self._latest[sandbox_id, principal.user_id, execution] = (row, mark)
        if len(self._latest) > _LATEST:
            del self._latest[next(iter(self._latest))]


class _Seen:
    """The latest executions, as digests: of all sandboxes, and of each sandbox and kind only so many.

    An execution has a number within its sandbox and kind. Both tables lose what is oldest, at one size: where
    a sandbox's counter is lost, its executions were lost before it.
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._counters: dict[tuple[str, Kind], int] = {}

    def has(self, sandbox_id: str, execution: str, mark: Mark | None) -> bool:
        if mark is None:
            return False
        number = self._numbers.get(_key(sandbox_id, execution, mark))
        if number is None:
            return False
        return self._counters.get((sandbox_id, mark.kind), 0) - number < _OF_SANDBOX[mark.kind]

    def knew(self, sandbox_id: str, execution: str, mark: Mark) -> bool:
        """Whether it is one that ran here before, perhaps so long ago that the agent has forgotten it."""
        return _key(sandbox_id, execution, mark) in self._numbers

    def remove(self, sandbox_id: str, execution: str, mark: Mark | None) -> None:
        """It did not run after all."""
        if mark is not None:
            self._numbers.pop(_key(sandbox_id, execution, mark), None)

    def add(self, sandbox_id: str, execution: str, mark: Mark | None) -> None:
        """Without a mark it is not remembered, but the agent makes room for it all the same."""
        mark = mark or mark_of("code")
        number = self._counters.pop((sandbox_id, mark.kind), 0) + 1
        self._counters[sandbox_id, mark.kind] = number
        key = _key(sandbox_id, execution, mark)
        self._numbers.pop(key, None)
        self._numbers[key] = number
        _forget_oldest(self._numbers)
        _forget_oldest(self._counters)


def _forget_oldest(table: dict[Any, int]) -> None:
    if len(table) > _REMEMBERED:
        del table[next(iter(table))]


def _key(sandbox_id: str, execution: str, mark: Mark) -> bytes:
    name = f"{sandbox_id}\0{mark.kind}\0{execution}\0".encode("utf-8", "replace")
    return hashlib.blake2b(name + mark.digest, digest_size=16).digest()
