"""What can go wrong, as exceptions. The message says what was wrong and what to do about it.

SandboxError
    AuthenticationError       no API key, or an invalid one
    PermissionDenied          the key's role or scopes do not allow it
    NotFound                  no such sandbox, file, context, command or pool
        FileNotFound          no such file or folder (also a FileNotFoundError)
    InvalidRequest            the request itself is wrong
        IsADirectory          a folder where a file is wanted (also an IsADirectoryError)
        MissingPath           no such program or working folder (also a FileNotFoundError)
        NotADirectory         a file where a folder is wanted (also a NotADirectoryError)
        FileExists            there is something already (also a FileExistsError)
        DirectoryNotEmpty     a folder that is not empty (also an OSError)
        FilePermissionDenied  the sandbox's user may not do this (also a PermissionError)
    RateLimited               too many requests
    QuotaExceeded             the tenant's quota is used up
    RuntimeUnavailable        no runtime serves the request
    SandboxEnded              the sandbox has ended
    SandboxTimeout            no answer in time
    GatewayUnavailable        the gateway cannot be reached, or cannot serve now
        NoRoom                no node has room for the sandbox
    ExecutionFailed           raised by Execution.raise_for_error (in results.py)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any


class SandboxError(Exception):
    """Something about a sandbox failed. `code` and `details` are those of the API's error.

    `retry_after` is how many seconds to wait before the next attempt, None where the gateway named no time.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = dict(details or {})
        self.retry_after = retry_after


class AuthenticationError(SandboxError):
    """No API key, or one that is unknown, revoked or expired."""


class PermissionDenied(SandboxError):
    """The API key's role or scopes do not allow this."""


class NotFound(SandboxError):
    """The sandbox, file, context, command or pool does not exist, or belongs to somebody else."""


class InvalidRequest(SandboxError):
    """The request itself is wrong; the message names the field."""


class _FromSystem(SandboxError, OSError):
    """An error of the sandbox's system, with `errno`, `strerror` and `filename` as Python's own has them."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details, retry_after=retry_after)
        self.errno = getattr(errno, str(self.details.get("kind")), None)
        self.strerror = os.strerror(self.errno) if self.errno is not None else message
        names = (self.details.get(name) for name in ("path", "cwd", "program"))
        self.filename = next((name for name in names if name is not None), None)

    def __str__(self) -> str:
        return self.message


class FileNotFound(_FromSystem, NotFound, FileNotFoundError):
    """There is no such file or folder in the sandbox."""


class MissingPath(_FromSystem, InvalidRequest, FileNotFoundError):
    """The program or the working folder that a command names is not in the sandbox."""


class IsADirectory(_FromSystem, InvalidRequest, IsADirectoryError):
    """There is a folder where a file is wanted."""


class NotADirectory(_FromSystem, InvalidRequest, NotADirectoryError):
    """There is a file where a folder is wanted."""


class FileExists(_FromSystem, InvalidRequest, FileExistsError):
    """There is something at the path already."""


class DirectoryNotEmpty(_FromSystem, InvalidRequest):
    """The folder is not empty."""


class FilePermissionDenied(_FromSystem, InvalidRequest, PermissionError):
    """The sandbox's user may not do this with the file."""


class RateLimited(SandboxError):
    """Too many requests; `retry_after` says how many seconds to wait."""


class QuotaExceeded(SandboxError):
    """The tenant's quota of sandboxes, cpu or memory is used up; terminate one, or ask for more."""


class SandboxTimeout(SandboxError):
    """An operation gave no answer in time. Code that runs too long ends with `Execution.end == "timeout"`."""


class SandboxEnded(SandboxError):
    """The sandbox has ended. `end` says why: terminated, expired, timeout, oom or lost.

    timeout: an execution ran too long, and the sandbox's agent did not end it.
    """

    @property
    def end(self) -> str:
        """Why the sandbox ended, as the gateway names it."""
        return str(self.details.get("end", "terminated"))


class RuntimeUnavailable(SandboxError):
    """No runtime serves the request; the message lists the available ones."""


class GatewayUnavailable(SandboxError):
    """The gateway cannot be reached, or cannot serve now."""

    @property
    def by_gateway(self) -> bool:
        """True when the gateway itself refused, False when it could not be reached."""
        return self.code == "service_unavailable"


class NoRoom(GatewayUnavailable):
    """No node has room for the sandbox now; the message is the scheduler's. End one, or ask for less."""


_BY_CODE: dict[str, type[SandboxError]] = {
    "unauthorized": AuthenticationError,
    "forbidden": PermissionDenied,
    "not_found": NotFound,
    "invalid_request": InvalidRequest,
    "conflict": InvalidRequest,
    "payload_too_large": InvalidRequest,
    "range_not_satisfiable": InvalidRequest,
    "rate_limited": RateLimited,
    "quota_exceeded": QuotaExceeded,
    "runtime_unavailable": RuntimeUnavailable,
    "gone": SandboxEnded,
    "service_unavailable": GatewayUnavailable,
    "unreachable": GatewayUnavailable,
}
# By the name of the system's error (`details.kind`): for a path that is not there, and for a request.
_BY_KIND: dict[str, type[SandboxError]] = {
    "ENOENT": MissingPath,
    "EISDIR": IsADirectory,
    "ENOTDIR": NotADirectory,
    "EEXIST": FileExists,
    "ENOTEMPTY": DirectoryNotEmpty,
    "EACCES": FilePermissionDenied,
    "EPERM": FilePermissionDenied,
}
_BY_STATUS: dict[int, str] = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    410: "gone",
    413: "payload_too_large",
    416: "range_not_satisfiable",
    422: "runtime_unavailable",
    429: "rate_limited",
    502: "unreachable",
    503: "unreachable",
    504: "unreachable",
}


def error_for(status: int, document: object, retry_after: str | None = None) -> SandboxError:
    """The exception for an HTTP answer: `document` is its decoded JSON body (or None).

    Understands `{error: {code, message, details}}` and Jupyter's `{message, reason}`. A 502, 503 or 504
    without a code of ours comes from a proxy before the gateway: its code is "unreachable".
    """
    body = document if isinstance(document, Mapping) else {}
    error = body.get("error")
    error = error if isinstance(error, Mapping) else {}
    code = str(error.get("code") or _BY_STATUS.get(status, "internal_error"))
    message = str(error.get("message") or body.get("message") or f"the gateway answered with status {status}")
    details = error.get("details")
    details = details if isinstance(details, Mapping) else {}
    kind = _BY_CODE.get(code, SandboxError)
    if kind is GatewayUnavailable and details.get("reason") == "Unschedulable":
        kind = NoRoom
    if kind in (NotFound, InvalidRequest) and "kind" in details:
        missing = kind is NotFound and details["kind"] == "ENOENT"
        kind = FileNotFound if missing else _BY_KIND.get(str(details["kind"]), kind)
    return kind(message, code=code, details=details, retry_after=_seconds(retry_after))


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
