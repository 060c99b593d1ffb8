"""Errors of calls to the API server: one class for each kind of answer, with the API server's message."""

from __future__ import annotations

import msgspec


class KubeError(Exception):
    """A call failed. `message` is the API server's; `str()` also names the call.

    `status` is the HTTP status (0 if there was no answer), `reason` is the reason in Kubernetes' `Status`,
    and `retry_after` is the number of seconds after which the API server accepts another try.
    """

    def __init__(
        self,
        message: str,
        *,
        call: str = "",
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{call}: {message}" if call else message)
        self.message = message
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class NotFound(KubeError):
    """404: the object, its namespace or its kind does not exist."""


class AlreadyExists(KubeError):
    """409: an object of this name exists."""


class Conflict(KubeError):
    """409: the object has changed since the caller read it."""


class Gone(KubeError):
    """410: the resource version is too old for a watch; list again."""


class Invalid(KubeError):
    """422: the object breaks its schema or rules, or a `test` of a JSON-Patch failed."""


class Forbidden(KubeError):
    """403: a Role or an admission policy does not allow the call."""


class Unauthorized(KubeError):
    """401: the credentials are not, or no longer, accepted."""


class TooManyRequests(KubeError):
    """429: the API server is busy and did not execute the call; try again after `retry_after`."""


class Unavailable(KubeError):
    """The API server failed (5xx) or did not answer in time. A write may have happened."""


class Unreachable(Unavailable):
    """No connection was made, so nothing was sent."""


_CLASSES: dict[int, type[KubeError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


# The API server's message for a JSON-Patch that cannot be applied, and what we say instead.
_PATCH_REJECTED = "the server rejected our request due to an error in our request"
_PATCH_DOES_NOT_APPLY = (
    "the patch does not apply to the object: one of its tests failed, or a path does not exist"
)


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0


class Status(msgspec.Struct, rename="camel"):
    """Kubernetes' `Status`: the body of every error answer and of a watch's ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


def error_of(status: int, body: bytes, call: str, retry_after: str = "") -> KubeError:
    """Return the error for an answer; `retry_after` is the value of the Retry-After header."""
    try:
        answer = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:  # the page of a proxy, not the API server's answer
        answer = Status(message=body[:200].decode(errors="replace").strip())
    status = answer.code or status
    wait = float(retry_after) if retry_after.isdigit() else None
    if wait is None and answer.details and answer.details.retry_after_seconds:
        wait = float(answer.details.retry_after_seconds)
    message = _PATCH_DOES_NOT_APPLY if answer.message == _PATCH_REJECTED else answer.message
    return _class_of(status, answer.reason)(
        message or f"the API server answered {status} without a message",
        call=call,
        status=status,
        reason=answer.reason,
        retry_after=wait,
    )


def _class_of(status: int, reason: str) -> type[KubeError]:
    if reason == "AlreadyExists":
        return AlreadyExists
    if status >= 500:
        return Unavailable
    return _CLASSES.get(status, KubeError)
