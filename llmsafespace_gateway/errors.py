"""The one error that crosses module borders: it becomes the public API's error answer."""

from __future__ import annotations

import math
from typing import Any

STATUS = {
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "gone": 410,
    "precondition_failed": 412,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "range_not_satisfiable": 416,
    "runtime_unavailable": 422,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "internal_error": 500,
    "service_unavailable": 503,
    "insufficient_storage": 507,
}


class ApiError(Exception):
    """A request cannot be served. `code` is a key of STATUS; the message says what was wrong and what to do.

    `retry_after` (seconds) becomes the Retry-After header. `audited` is set once it is in the audit log.
    """

    def __init__(
        self, code: str, message: str, details: dict[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code if code in STATUS else "internal_error"
        self.message = message
        self.details = details or {}
        self.retry_after = retry_after
        self.audited = False

    @property
    def retry_headers(self) -> dict[str, str]:
        """When to try again, for the answer's head, in whole seconds (RFC 9110, 10.2.3)."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return STATUS[self.code]


def invalid(field: str, problem: str) -> ApiError:
    """The error for one wrong field; `field` is as `body.resources.cpu`."""
    return ApiError("invalid_request", f"{field}: {problem}", {"field": field})
