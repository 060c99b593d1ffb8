"""The one tornado handler behind every REST route: check, authorize, decode, call, encode, answer errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from llmsafespace_gateway import bulk, tasks
from llmsafespace_gateway.access.executions import ACTIONS
from llmsafespace_gateway.access.http import identify
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest.answers import Answers
from llmsafespace_gateway.rest.routing import JSON, PREFIX, Route, Router
from llmsafespace_gateway.rest.validation import decode
from llmsafespace_gateway.services import Caller

if TYPE_CHECKING:
    from llmsafespace_gateway.access.principal import Principal
    from llmsafespace_gateway.access.service import Access
    from llmsafespace_gateway.metrics import Metrics
    from llmsafespace_gateway.readiness import Readiness
    from llmsafespace_gateway.services import Services
    from llmsafespace_gateway.services.types import SandboxRow

log = logging.getLogger("llmsafespace_gateway.requests")
BODY_TIMEOUT = 60.0
HEARTBEAT = 15.0  # seconds of silence on a stream of events after which its heartbeat is sent
MAX_DISCARDED = 64 * 1024 * 1024
MAX_UPLOAD = 1024**4  # it is streamed: the sandbox's own limit is what counts
_T = TypeVar("_T")


class Upload(Protocol):
    """Where the pieces of a request's body go."""

    async def write(self, piece: bytes) -> None:
        """Take one piece; returns when there is room for more. Never raises."""

    def abort(self) -> None:
        """The client is gone, or the request failed: undo."""


@stream_request_body
class RestHandler(Answers):
    """Serves every route of one `Router`; `prefix` is cut from the path first."""

    def initialize(self, router: Router, prefix: str = PREFIX) -> None:
        """Called by tornado for each request."""
        self.router = router
        self.prefix = prefix
        self.route: Route | None = None
        self.path_values: dict[str, str] = {}
        self.query_values: dict[str, Any] = {}
        self.body: Any = None
        self.upload: Upload | None = None
        self._principal: Principal | None = None
        self._body = bytearray()
        self._too_large = False
        self._failure: Exception | None = None
        self._gone = asyncio.Event()
        self._right: tuple[SandboxRow, str | None, str] | None = None  # what the request rests on
        self._right_lost = False
        self._audited = False
        self._undo: Callable[[], None] | None = None
        self._began = time.monotonic()

    # -- what routes use ---------------------------------------------------------------------------

    @property
    def principal(self) -> Principal:
        """Who is asking. Only on routes that are not public."""
        if self._principal is None:
            raise ApiError("unauthorized", "send an API key: `Authorization: Bearer <key>`")
        return self._principal

    @property
    def caller(self) -> Caller:
        """Who is asking, as services take it. Only on routes that are not public."""
        return Caller(self.principal, "rest")

    @property
    def services(self) -> Services:
        """The use cases."""
        return cast("Services", self.settings["services"])

    @property
    def access(self) -> Access:
        """Who may do what."""
        return cast("Access", self.settings["access"])

    @property
    def metrics(self) -> Metrics:
        """What is counted."""
        return cast("Metrics", self.settings["metrics"])

    @property
    def readiness(self) -> Readiness:
        """Whether this process can do its work."""
        return cast("Readiness", self.settings["readiness"])

    def accepted(self) -> None:
        """An execution was accepted; what becomes of the request is another matter from now on."""
        self._audited = True

    @property
    def headers_written(self) -> bool:
        """Whether the answer has begun, so that its head cannot change any more."""
        return bool(self._headers_written)

    @property
    def body_size(self) -> int:
        """Bytes of the body that was sent."""
        return len(self._body)

    def query(self, name: str) -> Any:
        """A query value that the route declares."""
        return self.query_values[name]

    async def while_connected(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, which is cancelled when the client goes away (StreamClosedError then).

        It is cancelled as well when the right is lost that the request rests on (key, role, scope, grant):
        ApiError (unauthorized, or what the same request would be answered now).
        """
        undo = self._watch_right()
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone.wait())
        waiting: set[asyncio.Future[Any]] = {task, gone}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and self._right_lost:
                raise await self._why_lost()
            if not task.done():
                raise StreamClosedError
            return task.result()
        finally:
            undo()
            gone.cancel()
            await tasks.end(task)  # its client went away in the middle of what it writes

    def _watch_right(self) -> Callable[[], None]:
        if self._right is None:
            return self.access.on_revoked(self.principal.key_id, self._lose_right)
        row, level, _ = self._right
        return self.access.watch(self.principal, row, level, self._lose_right)

    def _lose_right(self) -> None:
        self._right_lost = True
        self._gone.set()
        if self.upload is not None:
            # Whatever the client goes on to send is of no use, and it may never end.
            self.upload.abort()
            connection: Any = self.request.connection
            connection.stream.close()

    async def _why_lost(self) -> ApiError:
        try:
            if self._right is not None:
                await self.access.sandbox(self.principal, self._right[0].id, self._right[2])
        except ApiError as error:
            return error
        return ApiError("unauthorized", "this API key is no longer valid, or no longer what it was")

    async def send(self, pieces: AsyncGenerator[bytes], heartbeat: bytes = b"") -> None:
        """Send pieces as they come, never more than the client takes; ends when the client goes away.

        `heartbeat` is sent whenever nothing else was for a while: a client that hears nothing for several
        of them knows that the connection is dead. Proxies do not end such a stream as idle either.
        """
        loop = asyncio.get_running_loop()
        turn = asyncio.Lock()  # tornado forgets a flush during which another one begins
        last = loop.time()

        async def write(piece: bytes) -> None:
            nonlocal last
            async with turn:
                self.write(piece)
                await self.flush()
                last = loop.time()

        async def pump() -> None:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    await write(piece)

        async def beat() -> None:
            with contextlib.suppress(StreamClosedError):
                while True:
                    await asyncio.sleep(max(last + HEARTBEAT - loop.time(), HEARTBEAT / 10))
                    if loop.time() - last >= HEARTBEAT and not turn.locked():
                        await write(heartbeat)

        beating = asyncio.ensure_future(beat()) if heartbeat else None
        try:
            with contextlib.suppress(StreamClosedError):
                await self.while_connected(pump())
        finally:
            if beating is not None:
                beating.cancel()

    # -- the request's way ---------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Check what can be checked before any of the body is read.

        What is wrong is said after the body has been read and thrown away: a client that still sends would
        not hear it, and its connection could not serve the next request. Only very long bodies are cut off.
        """
        connection: Any = self.request.connection
        connection.set_body_timeout(BODY_TIMEOUT)
        try:
            await self._check(connection)
        except Exception as error:
            await self._audit_refusal(error)
            if self._announced() > MAX_DISCARDED:
                raise
            connection.set_body_timeout(BODY_TIMEOUT)
            self._failure = error

    async def _check(self, connection: Any) -> None:
        """Find the route, authenticate, authorize, check the query, and begin an upload."""
        route, self.path_values = self.router.match(
            self.request.method or "", self.request.path[len(self.prefix) :]
        )
        self.route = route
        if not route.public:
            self._principal = await identify(self)
            if route.scope is not None:
                self.access.require(self._principal, route.scope)
        self.query_values = self._query(route)
        if route.upload and route.begin is not None:
            connection.set_body_timeout(24 * 3600.0)
            connection.set_max_body_size(MAX_UPLOAD)
            self.upload = await route.begin(self, *await self._loaded(route))
            self._undo = self._watch_right()
        elif self._announced() > route.max_body:
            raise self._over(route)

    async def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body. What is over the limit is counted and thrown away."""
        if self.route is None or self._failure is not None:
            return
        if self.upload is not None:
            await self.upload.write(chunk)
        elif len(self._body) + len(chunk) > self.route.max_body:
            self._too_large = True
            self._body.clear()
        elif not self._too_large:
            self._body += chunk

    async def _serve(self) -> None:
        self.body_read = True
        if self._failure is not None:
            raise self._failure
        route = self.route
        if route is None:
            raise ApiError("not_found", "no such path")
        if self._too_large:
            raise self._over(route)
        if route.request is not None:
            self.body = await bulk.run(len(self._body), self._decoded, route)
        elif self._body and not route.upload:
            raise ApiError("invalid_request", "body: this request takes none")
        try:
            answer = await self._handled(route)
        except (ApiError, ConnectionError) as error:
            honest = await self._honest(error)
            await self._audit_refusal(honest)
            raise honest from error
        if not self._finished and not self._headers_written:
            await self._answer(route, answer)

    async def _handled(self, route: Route) -> Any:
        return await route.handle(self, *await self._loaded(route))

    async def _loaded(self, route: Route) -> tuple[SandboxRow, ...]:
        """What the route acts on: the sandbox that the path names, which the request rests on from now on."""
        if route.on is None:
            return ()
        if self._right is None:
            scope = route.scope or ""
            found = await self.access.sandbox_and_level(self.principal, self.path_values["sandbox_id"], scope)
            self._right = (*found, scope)
        return (self._right[0],)

    async def _honest(self, error: ApiError | ConnectionError) -> Exception:
        """An agent that went away in the middle may have ended with its sandbox: then that is the answer."""
        sandbox_id = self.path_values.get("sandbox_id")
        if sandbox_id is None or (isinstance(error, ApiError) and error.code != "service_unavailable"):
            return error
        return await self.services.any.explained(sandbox_id, error)

    async def _answer(self, route: Route, answer: Any) -> None:
        if answer is None:
            self.set_status(self._status_code if self._status_code != 200 else 204)
            self.clear_header("Content-Type")
            self.finish()
            return
        if self._status_code == 200:
            self.set_status(route.status)
        self.set_header("Content-Type", JSON)
        pieces = await bulk.encode(answer)
        if len(pieces) == 1 or self._principal is None:
            self.finish(b"".join(pieces))
            return
        self.set_header("Content-Length", str(sum(map(len, pieces))))
        await self.send(bulk.in_turns(pieces))
        self.finish()

    get = head = post = put = patch = delete = options = _serve

    def _query(self, route: Route) -> dict[str, Any]:
        known = {query.name: query for query in route.query}
        values = {name: query.default for name, query in known.items()}
        for name, sent in self.request.query_arguments.items():
            if name == "token" and self.settings.get("allow_token_in_url"):
                continue
            if name not in known:
                names = ", ".join(sorted(known)) or "none"
                raise ApiError(
                    "invalid_request",
                    f"query.{name[:60]}: is not known here; known: {names}",
                    {"field": f"query.{name[:60]}"},
                )
            if len(sent) != 1:
                raise ApiError("invalid_request", f"query.{name}: was sent {len(sent)} times; send it once")
            values[name] = known[name].parse(sent[0].decode("utf-8", "replace"))
        return values

    def _decoded(self, route: Route) -> Any:
        if not self._body and route.request_optional:
            return decode(b"{}", route.request)
        kind = self.request.headers.get("Content-Type", JSON).partition(";")[0].strip().lower()
        if kind != JSON and not kind.endswith("+json"):
            raise ApiError(
                "unsupported_media_type",
                f"header.Content-Type: expected {JSON}, got {kind[:60]!r}",
                {"field": "header.Content-Type"},
            )
        return decode(bytes(self._body), route.request)

    def _announced(self) -> int:
        length = self.request.headers.get("Content-Length", "0")
        return int(length) if length.isdecimal() else 0

    def _over(self, route: Route) -> ApiError:
        return ApiError("payload_too_large", f"body: at most {route.max_body} bytes can be sent here")

    async def _audit_refusal(self, error: Exception) -> None:
        """Write a refusal down, unless that was done. Who presents no valid key is in the log only."""
        who, route = self._principal or getattr(self, "identified", None), self.route
        if self._audited or who is None or route is None or not isinstance(error, ApiError) or error.audited:
            return
        self._audited = True
        caller, target = Caller(who, "rest"), self.path_values.get("sandbox_id", "")
        action = route.action or f"{route.method} {route.path}"
        if action in ACTIONS:
            named = (getattr(self.body, name, None) for name in ("execution_id", "command_id", "id"))
            execution = next(filter(None, named), "")
            await self.services.executions.refuse_execution(caller, target, execution, error, action)
        else:
            await self.services.any.refuse(caller, action, target, error)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is our own fault; what is the client's is in its answer and the request log."""
        if not isinstance(value, ApiError | HTTPError | StreamClosedError):
            log.error("a request failed", exc_info=(typ, value, tb), extra={"fields": self.log_fields()})

    def on_connection_close(self) -> None:
        """The client went away before its answer was complete."""
        self._gone.set()
        if self._undo is not None:
            self._undo()
        if self.upload is not None:
            self.upload.abort()
        super().on_connection_close()

    def on_finish(self) -> None:
        """Count and log the request."""
        if self._undo is not None:
            self._undo()
        if self.upload is not None:
            self.upload.abort()
        route = self.route.path if self.route is not None else "unknown"
        method = (self.request.method or "") if self.route is not None else "unknown"
        taken = time.monotonic() - self._began
        self.metrics.requests.labels(method, route, str(self.get_status())).inc()
        self.metrics.latency.labels(method, route).observe(taken)
        fields = self.log_fields() | {"status": self.get_status(), "milliseconds": round(taken * 1000, 3)}
        level = logging.DEBUG if self.route is not None and self.route.probe else logging.INFO
        log.log(level, "request", extra={"fields": fields})

    def log_fields(self) -> dict[str, Any]:
        """Who asked what: the route and ids, never a query, header, body or key."""
        principal = self._principal
        return {
            "request_id": self.request_id,
            "method": self.request.method,
            "route": self.route.path if self.route is not None else "unknown",
            "sandbox": self.path_values.get("sandbox_id"),
            "address": self.request.remote_ip,
            "user": principal.user_id if principal is not None else None,
            "key": principal.key_id if principal is not None else None,
        }
