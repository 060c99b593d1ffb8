"""Executions, as access control sees them: each is limited, audited and counted once, whatever door it takes.

A door calls `admit` before it passes an execution on, and `note` when it knows what became of that: accepted,
or the code of the refusal. A refusal by `admit` itself is noted here. Every refusal is counted; the audit log
has those that a key gets again and again as a few entries with a count.

Where a client's id names one execution, a request that is sent again (over another connection, say) is the
same, and the agent does not run it again. Such a door gives the execution's `Mark`. The agent forgets the
oldest ids of a sandbox and would run them anew, so that here fewer are remembered than there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.access.rates import RateLimited, RateLimits

Door = Literal["rest", "stream", "jupyter", "durable"]
Kind = Literal["code", "command"]

ACTION = "sandbox.execute"
COMMAND = "command.start"
_REMEMBERED = 20_000  # of all sandboxes
_OF_SANDBOX: dict[Kind, int] = {"code": 5_000, "command": 128}  # half of what an agent keeps of each kind


class Mark(NamedTuple):
    """What an execution is: requests of one id and one mark are the same."""

    kind: Kind
    digest: bytes


def mark_of(kind: Kind, *content: Any) -> Mark:
    """The mark of what is to be run: code or command, and everything that it depends on."""
    return Mark(kind, hashlib.blake2b(msgspec.msgpack.encode(content), digest_size=16).digest())


class ExecutionLog:
    """`audit(principal, action, target, outcome, **details)` writes down what was accepted.

    `refused` is the same for refusals; `count(door, outcome)` counts.
    """

    def __init__(
        self,
        limits: RateLimits,
        audit: Callable[..., None],
        refused: Callable[..., None],
        anonymous: Principal | None,
    ) -> None:
        self._limits = limits
        self._audit = audit
        self._refused = refused
        self._anonymous = anonymous
        self._seen = _Seen()
        self.count: Callable[[str, str], None] = lambda door, outcome: None

    def admit(
        self, principal: Principal, sandbox_id: str, execution: str, door: Door, mark: Mark | None = None
    ) -> None:
        """May it run now? Raises RateLimited, which is noted then."""
        if principal is self._anonymous or self._seen.has(sandbox_id, execution, mark):
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
        mark: Mark | None = None,
        *,
        action: str = ACTION,
        **details: Any,
    ) -> None:
        """An execution was accepted (`ok`), or refused with the code of an error."""
        details = {"execution": execution, "door": door, **details}
        if outcome != "ok":
            self._refused(principal, action, sandbox_id, outcome, **details)
        elif self._seen.has(sandbox_id, execution, mark):
            return
        else:
            self._seen.add(sandbox_id, execution, mark)
            self._audit(principal, action, sandbox_id, outcome, **details)
        self.count(door, outcome)


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
