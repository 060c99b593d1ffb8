"""What all handlers of the Jupyter API share: services, bodies, answers and Jupyter's error shape."""

from __future__ import annotations

import logging
from http.client import responses
from typing import Any, cast

import msgspec
from tornado.web import HTTPError, stream_request_body

from llmsafespace_gateway import failures
from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.http import AuthenticatedHandler
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services import Caller, Services

log = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024
BODY_TIMEOUT = 60.0
_CODES = {401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}


@stream_request_body
class JupyterHandler(AuthenticatedHandler):
    """Base of every handler under `/api`. Bodies are bounded; cookies are never looked at."""

    def initialize(self) -> None:
        """Called by tornado for each request."""
        self._received = bytearray()
        self._too_large = False
        self._reads_body = False

    async def prepare(self) -> None:
        """Authenticate, before any of the body is read.

        A refusal is said after the body has been read and thrown away: tornado closes the connection of an
        answer that comes before, and the client's next request would be lost with it.
        """
        connection: Any = self.request.connection
        connection.set_body_timeout(BODY_TIMEOUT)
        try:
            await super().prepare()
        except ApiError as error:
            refusal = error

            def refuse(*args: str, **kwargs: str) -> None:
                raise refusal

            setattr(self, (self.request.method or "").lower(), refuse)
        self._reads_body = True

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body. What is over the limit is thrown away."""
        if len(self._received) + len(chunk) > MAX_BODY:
            self._too_large = True
            self._received.clear()
        elif not self._too_large:
            self._received += chunk

    @property
    def body(self) -> bytes:
        """The whole body. Raises ApiError(payload_too_large)."""
        if self._too_large:
            raise ApiError("payload_too_large", f"the body may have at most {MAX_BODY} bytes")
        return bytes(self._received).strip()

    @property
    def caller(self) -> Caller:
        """Who is asking, as services take it."""
        return Caller(self.principal, "jupyter")

    @property
    def services(self) -> Services:
        """The use cases."""
        return cast(Services, self.settings["services"])

    @property
    def access(self) -> Access:
        """Who may do what."""
        return cast(Access, self.settings["access"])

    def answer(self, model: Any, status: int = 200, location: str | None = None) -> None:
        """Finish with a JSON body; None is an empty answer."""
        self.set_status(status)
        if location is not None:
            self.set_header("Location", location)
        if model is None:
            self.clear_header("Content-Type")
            self.finish()
            return
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(model))

    def set_default_headers(self) -> None:
        """The headers of every answer."""
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.clear_header("Server")

    def check_xsrf_cookie(self) -> None:
        """Nothing here trusts a cookie: every request carries its key."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer an exception as `{message, reason}`, and as `error` in the words of `/api/v1`."""
        error = as_error(status_code, kwargs.get("exc_info"))
        who = getattr(self, "principal", None) or getattr(self, "identified", None)
        if who is not None:
            kind = f"{self.request.method} {type(self).__name__}"
            self.services.any.refuse_request(Caller(who, "jupyter"), kind, error)
        self.set_status(error.status)
        if not self._reads_body:  # a path that is no UTF-8: tornado closes the connection
            self.set_header("Connection", "close")
        for name, value in error.retry_headers.items():
            self.set_header(name, value)
        document = {
            "message": error.message,
            "reason": responses.get(error.status),
            "error": {"code": error.code, "message": error.message, "details": error.details},
        }
        self.set_header("Content-Type", "application/json")
        self.finish(_encoded(document))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is our own fault; what is the client's is in its answer."""
        if not isinstance(value, ApiError | HTTPError):
            log.error("a request to %s failed", self.request.path, exc_info=(typ, value, tb))


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
        text = responses.get(status, "the request is not valid")
        return ApiError(_CODES.get(status, "invalid_request"), text)
    return ApiError("internal_error", "something went wrong here; the log says what")


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(document)
    except (TypeError, ValueError, UnicodeEncodeError):
        message = str(document["message"]).encode("ascii", "replace").decode()
        return msgspec.json.encode({"message": message, "reason": document["reason"]})
