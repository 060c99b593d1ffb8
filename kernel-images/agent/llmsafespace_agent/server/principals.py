"""Whose a session and a request are. The gateway says who is connected (`principal`, a user's id).

A session belongs to a principal: the same name used by two is two sessions, with a cursor each. What the
kernel answers to a request alone (replies, input_request) goes to the session of the principal that sent it;
which one that was is remembered by the request's msg_id, since the kernel only repeats what the client wrote.
"""

from __future__ import annotations

from collections import deque

from llmsafespace_agent.server.errors import conflict

_REMEMBERED = 4096  # requests of each principal


def session_key(principal: str, session: str) -> str:
    """A principal's session; never empty, which in the journal means everybody."""
    return f"{principal}\0{session}"


class Requests:
    """Which principal sent the request of each msg_id, lately."""

    def __init__(self) -> None:
        self._principals: dict[str, str] = {}
        self._order: dict[str, deque[str]] = {}

    def note(self, msg_id: str, principal: str) -> None:
        """A principal sends this request. Raises AgentError(conflict) when the id is of another one's."""
        known = self._principals.get(msg_id)
        if known is not None:
            check_same(msg_id, known, principal)
            return
        self._principals[msg_id] = principal
        order = self._order.setdefault(principal, deque())
        order.append(msg_id)
        if len(order) > _REMEMBERED:
            del self._principals[order.popleft()]

    def principal(self, msg_id: str) -> str | None:
        """Who sent it; None when that is not known."""
        return self._principals.get(msg_id)


def check_same(msg_id: str, known: str, principal: str) -> None:
    """Raise AgentError(conflict) when an id was used by another principal."""
    if known != principal:
        raise conflict(f"id {msg_id[:128]!r} has been used by somebody else; use a new id", id=msg_id[:128])
