"""What the API server refuses, and why, in its own words."""

from __future__ import annotations

import msgspec


class KubeError(Exception):
    """A call failed. `message` is the API server's; `str()` also says which call it was.

    `status` is the HTTP status (0: there was no answer), `reason` Kubernetes' word for it, `retry_after`
    the seconds after which the API server wants to be asked again.
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
    """404: the object, its namespace or its kind is not there."""


class AlreadyExists(KubeError):
    """409: an object of this name is there."""


class Conflict(KubeError):
    """409: the object is no longer as the call presumed."""


class Gone(KubeError):
    """410: the resource version is too old to go on from; list again."""


class Invalid(KubeError):
    """422: the object breaks its schema or rules, or a `test` of a JSON-Patch failed."""


class Forbidden(KubeError):
    """403: neither Role nor admission policy allows it."""


class Unauthorized(KubeError):
    """401: the credentials are not, or no longer, accepted."""


class TooManyRequests(KubeError):
    """429: the API server did not take the call; ask again after `retry_after`."""


class Unavailable(KubeError):
    """The API server failed (5xx) or did not answer in time: a write may or may not have happened."""


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


# What the API server says of a JSON-Patch that does not fit.
_UNHELPFUL = "the server rejected our request due to an error in our request"
_HELPFUL = "the object is not as the patch presumes: a test in it does not hold, or a path is not there"


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0


class Status(msgspec.Struct, rename="camel"):
    """Kubernetes' `Status`, the body of every refusal and of a watch's ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


def error_of(status: int, body: bytes, call: str, retry_after: str = "") -> KubeError:
    """The error for this answer; `retry_after` is the header's value."""
    try:
        told = msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:  # a proxy's page, not the API server's answer
        told = Status(message=body[:200].decode(errors="replace").strip())
    status = told.code or status
    wait = float(retry_after) if retry_after.isdigit() else None
    if wait is None and told.details and told.details.retry_after_seconds:
        wait = float(told.details.retry_after_seconds)
    message = _HELPFUL if told.message == _UNHELPFUL else told.message
    return _class_of(status, told.reason)(
        message or f"the API server answered {status} without saying why",
        call=call,
        status=status,
        reason=told.reason,
        retry_after=wait,
    )


def _class_of(status: int, reason: str) -> type[KubeError]:
    if reason == "AlreadyExists":
        return AlreadyExists
    if status >= 500:
        return Unavailable
    return _CLASSES.get(status, KubeError)
