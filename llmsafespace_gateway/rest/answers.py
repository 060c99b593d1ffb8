"""Error answers and the headers that every answer has, for plain requests and websocket upgrades."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler

from llmsafespace_gateway import failures
from llmsafespace_gateway.errors import STATUS, ApiError
from llmsafespace_gateway.logs import request_id
from llmsafespace_gateway.rest.routing import JSON
from llmsafespace_gateway.rest.types import ErrorAnswer, ErrorBody

log = logging.getLogger("llmsafespace_gateway.requests")
_CODES = {status: code for code, status in STATUS.items() if code != "quota_exceeded"}


class Answers(RequestHandler):
    """A handler whose errors, whatever they are, have the API's shape."""

    body_read = False  # until then tornado closes the connection after an answer

    def set_default_headers(self) -> None:
        """The headers of every answer. Called by tornado, also before `initialize`."""
        self.request_id = getattr(self, "request_id", None) or request_id(
            self.request.headers.get("X-Request-Id")
        )
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.clear_header("Server")
        for name, value in getattr(self, "_access_headers", {}).items():
            self.set_header(name, value)

    def check_xsrf_cookie(self) -> None:
        """Nothing here trusts a cookie."""

    def compute_etag(self) -> str | None:
        """Only files have one, and set it themselves."""
        return None

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is our own fault, by its request id: tornado would log the URL, which may hold a key."""
        if not isinstance(value, ApiError | HTTPError | StreamClosedError):
            fields = {"request_id": self.request_id}
            log.error("a request failed", exc_info=(typ, value, tb), extra={"fields": fields})

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Answer an exception in the API's error shape."""
        error = as_error(status_code, kwargs.get("exc_info"))
        if self._headers_written:
            # Too late to say anything: an answer cut off before its length or last chunk is an error.
            connection: Any = self.request.connection
            connection.close()
            self._finished = True
            self.on_finish()
            return
        self.clear()
        self.set_status(error.status)
        self.set_header("Content-Type", JSON)
        if not self.body_read:
            self.set_header("Connection", "close")
        for name, value in error.retry_headers.items():
            self.set_header(name, value)
        if error.status == 416 and "size" in error.details:
            self.set_header("Content-Range", f"bytes */{error.details['size']}")
        if "allowed" in error.details and error.status == 405:
            self.set_header("Allow", ", ".join(error.details["allowed"]))
        body = ErrorBody(code=error.code, message=error.message, details=error.details)
        self.finish(encode_error(body))


def as_error(status: int, exc_info: Any) -> ApiError:
    """Any exception as one with a code and a message that may be shown."""
    error = exc_info[1] if exc_info else None
    if isinstance(error, ApiError):
        return error
    if (known := failures.explained(error)) is not None:
        return known
    if isinstance(error, HTTPError):
        status = error.status_code
    if isinstance(error, ConnectionError):
        return ApiError("service_unavailable", "the sandbox's agent went away; try again", retry_after=1.0)
    if status < 500:
        return ApiError(_CODES.get(status, "invalid_request"), f"the request is not valid (HTTP {status})")
    return ApiError("internal_error", "something went wrong here; the log has the request id")


def encode_error(body: ErrorBody) -> bytes:
    """The bytes of an error answer; details that JSON cannot hold are left out."""
    try:
        return msgspec.json.encode(ErrorAnswer(error=body))
    except (TypeError, ValueError, UnicodeEncodeError):
        plain = ErrorBody(code=body.code, message=body.message.encode("ascii", "replace").decode())
        return msgspec.json.encode(ErrorAnswer(error=plain))
