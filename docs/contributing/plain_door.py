"""A door of its own: `POST /plain/{sandbox}` runs the body as code and answers what it prints, as text."""

from __future__ import annotations

from typing import Any

from llmsafespace_gateway.access.http import AuthenticatedHandler
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services import Caller, Execute, Services, runs


class Plain(AuthenticatedHandler):
    """Decode, call the service, encode. `principal` is set: without a valid key nobody gets here."""

    async def post(self, sandbox_id: str) -> None:
        """Run the body."""
        services: Services = self.settings["services"]
        wanted = Execute(id=runs.new_id(), kind="code", content=self.request.body.decode(errors="replace"))
        run = await services.executions.begin(Caller(self.principal, "plain"), sandbox_id, wanted)
        done = await services.executions.outcome(run)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("X-End", done.end.end)
        self.write(done.stdout)

    def write_error(self, status_code: int, **details: Any) -> None:
        """Say why, in words."""
        error = details["exc_info"][1]
        if isinstance(error, ApiError):
            self.set_status(error.status)
            self.finish(error.message + "\n")
        else:
            self.finish("this request cannot be served\n")


def routes() -> list[Any]:
    """The rules for tornado's Application."""
    return [(r"/plain/([\w-]+)", Plain)]


async def drain() -> None:
    """Nothing stays open between requests."""
