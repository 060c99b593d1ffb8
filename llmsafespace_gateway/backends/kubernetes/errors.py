"""The API server's refusals in the words of the public API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmsafespace_gateway.errors import ApiError
from llmsafespace_kube.api.errors import AlreadyExists, Forbidden, Invalid, KubeError, NotFound

_CODES: dict[type[KubeError], str] = {
    AlreadyExists: "conflict",
    Forbidden: "forbidden",
    Invalid: "invalid_request",
    NotFound: "not_found",
}


def unavailable(message: str, retry_after: float = 1.0, details: dict[str, Any] | None = None) -> ApiError:
    """The error for a sandbox that cannot be started or reached."""
    return ApiError("service_unavailable", message, details, retry_after=retry_after)


def as_api_error(error: KubeError, doing: str) -> ApiError:
    """`doing` says what failed, as `the sandbox could not be started`."""
    code = _CODES.get(type(error))
    message = f"{doing}: {error.message}"
    return ApiError(code, message) if code else unavailable(message, error.retry_after or 1.0)


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turns KubeError into ApiError."""
    try:
        yield
    except KubeError as error:
        raise as_api_error(error, doing) from error
