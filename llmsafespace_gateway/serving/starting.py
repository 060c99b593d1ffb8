"""What is answered between the start and the moment that everything is ready."""

from __future__ import annotations

from typing import Any

import msgspec
from tornado.web import Application, RequestHandler

RETRY_AFTER = 1


class _Starting(RequestHandler):
    """503 with Retry-After for everything but the question whether the process lives."""

    def prepare(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        if self.request.path == "/healthz":
            self.finish(msgspec.json.encode({"status": "ok"}))
            return
        message = "the gateway is starting; try again"
        error: dict[str, Any] = {
            "code": "service_unavailable",
            "message": message,
            "details": {"starting": True},
        }
        self.set_status(503)
        self.set_header("Retry-After", str(RETRY_AFTER))
        self.set_header("Connection", "close")
        self.finish(msgspec.json.encode({"message": message, "error": error}))


def application() -> Application:
    """The application of a gateway that is not ready."""
    return Application([(r".*", _Starting)], log_function=lambda handler: None)
