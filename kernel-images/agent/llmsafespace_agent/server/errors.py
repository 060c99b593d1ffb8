"""The one error that a peer's request can end in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsafespace_protocol.requests import Error


class AgentError(Exception):
    """A request is refused. `code` is one of the public API's error codes; the message says what to do."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})

    def on_wire(self) -> Error:
        """The refusal as the peer reads it."""
        return Error(self.code, self.message, self.details)


def invalid(message: str, **details: Any) -> AgentError:
    """The request itself is wrong."""
    return AgentError("invalid_request", message, details)


def not_found(message: str, **details: Any) -> AgentError:
    """What the request names is not there."""
    return AgentError("not_found", message, details)


def conflict(message: str, **details: Any) -> AgentError:
    """The request does not fit the present state."""
    return AgentError("conflict", message, details)
