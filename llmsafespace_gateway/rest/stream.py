"""The websocket …/stream: many executions over one connection, each message authorized by itself.

Closing it ends no execution: they are durable, and can be followed at …/executions/{id}/events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from llmsafespace_gateway.access.http import AuthenticatedHandler, is_websocket_upgrade
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.liveness import Liveness
from llmsafespace_gateway.rest.answers import Answers, as_error
from llmsafespace_gateway.rest.conversions import usage_answer
from llmsafespace_gateway.rest.types import ExecutionErrorAnswer
from llmsafespace_gateway.rest.types_processes import (
    StreamAnswer,
    StreamCancel,
    StreamComplete,
    StreamDisplay,
    StreamError,
    StreamExecute,
    StreamOutput,
    StreamPong,
    StreamRequest,
    StreamStart,
    StreamStatus,
)
from llmsafespace_gateway.rest.validation import decode, invalid
from llmsafespace_gateway.services import Caller, Execute, runs
from llmsafespace_gateway.services.types import (
    Display,
    End,
    ErrorEvent,
    Event,
    Missed,
    SandboxRow,
    Stderr,
    Stdout,
    Update,
)

if TYPE_CHECKING:
    from llmsafespace_gateway.access.service import Access
    from llmsafespace_gateway.metrics import Metrics
    from llmsafespace_gateway.services import Services

log = logging.getLogger(__name__)

KEY_REVOKED = 4401
SANDBOX_ENDED = 4410
RESTART = 1012
MAX_MESSAGE = 16 * 1024 * 1024
MAX_RUNS = 64
STATUS_EVERY = 15.0
_CUT_AFTER = 0.5  # seconds that a client has to answer a close frame
_encode = msgspec.json.Encoder().encode
_open: set[StreamSocket] = set()  # of this process


class StreamSocket(AuthenticatedHandler, Answers, WebSocketHandler):
    """One client on one sandbox."""

    def initialize(self) -> None:
        """Called by tornado for each request."""
        self._row: SandboxRow | None = None
        self._level: str | None = None
        self._busy = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._status: asyncio.Task[None] | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def _access(self) -> Access:
        return cast("Access", self.settings["access"])

    @property
    def _services(self) -> Services:
        return cast("Services", self.settings["services"])

    @property
    def _caller(self) -> Caller:
        return Caller(self.principal, "stream")

    @property
    def _metrics(self) -> Metrics:
        return cast("Metrics", self.settings["metrics"])

    @property
    def max_message_size(self) -> int:
        """The longest message of a client; a longer one closes the connection with 1009."""
        return MAX_MESSAGE

    @property
    def ping_interval(self) -> float | None:
        """No pings by tornado, to which a client is gone whose pong waits behind a large message."""
        return 0

    def check_origin(self, origin: str) -> bool:
        """Any page may connect: it needs a key, which no browser sends by itself."""
        return True

    async def prepare(self) -> None:
        """Authenticate, and look whether the sandbox is one that may be seen."""
        await super().prepare()
        if not is_websocket_upgrade(self):
            raise ApiError("invalid_request", "this path is a websocket; connect with an Upgrade")
        self._row = await self._access.sandbox(self.principal, self.path_args[0], "sandboxes:read")
        self._level = await self._access.level(self.principal, self._row)
        if self._row.state == "ended":
            end = self._row.end or "lost"
            raise ApiError("gone", f"the sandbox has ended: {end}; create another", {"end": end})

    def open(self, *args: str, **kwargs: str) -> None:
        """The connection stands."""
        row = self._known
        self.set_nodelay(True)
        _open.add(self)
        self._metrics.websockets.labels("stream").inc()
        websocket: Any = self.ws_connection
        liveness = Liveness(websocket.stream, websocket.stream.writing, self._ping, self._cut)
        liveness.start()
        self._undo = [
            liveness.stop,
            lambda: self._metrics.websockets.labels("stream").dec(),
            self._access.watch(self.principal, row, self._level, self._no_right),
            self._services.sandboxes.on_ended(row, self._sandbox_ended),
        ]
        self._status = asyncio.ensure_future(self._tell_status())

    async def on_message(self, message: str | bytes) -> None:
        """Serve one message; the next one is read when this one has been accepted."""
        execution: str | None = None
        try:
            body = message.encode() if isinstance(message, str) else message
            execution = _named_in(body)
            wanted = decode(body, StreamRequest)
            if isinstance(wanted, StreamExecute):
                execution = wanted.execution_id = wanted.execution_id or runs.new_id()
                await self._start_run(wanted, execution)
            elif isinstance(wanted, StreamCancel):
                execution = wanted.execution_id
                await self._cancel(wanted)
            else:
                await self._send(StreamPong(timestamp=wanted.timestamp))
        except WebSocketClosedError:
            return
        except Exception as error:
            await self._refuse(error, execution)

    def on_close(self) -> None:
        """The connection has ended; what runs goes on without it."""
        for undo in self._undo:
            undo()
        self._undo = []
        _open.discard(self)
        for task in (*self._runs.values(), self._status):
            if task is not None:
                task.cancel()

    @property
    def _known(self) -> SandboxRow:
        if self._row is None:
            raise ApiError("not_found", "there is no such sandbox")
        return self._row

    # -- requests ----------------------------------------------------------------------------------------

    async def _start_run(self, wanted: StreamExecute, execution: str) -> None:
        def may() -> None:
            if len(self._runs) >= MAX_RUNS:
                raise ApiError(
                    "rate_limited", f"at most {MAX_RUNS} executions of one connection can run at once"
                )
            if execution in self._runs:
                raise ApiError("conflict", "this connection follows an execution of this id already")
            if wanted.mode == "command" and (wanted.context is not None or wanted.language is not None):
                raise invalid("body.context", "context and language are for code")

        what = Execute(
            id=execution,
            kind=wanted.mode,
            content=wanted.content,
            context=wanted.context,
            language=wanted.language,
            env=wanted.env,
            timeout=wanted.timeout,
            stdin=wanted.stdin,
        )
        run = await self._services.executions.begin(self._caller, self._known.id, what, may)
        await self._send(StreamStart(execution_id=execution, timestamp=datetime.now(UTC)))
        self._runs[execution] = asyncio.ensure_future(self._follow(run))
        self._busy.set()

    async def _follow(self, run: runs.Run) -> None:
        error: ErrorEvent | None = None
        missed = 0
        try:
            async with contextlib.aclosing(self._services.executions.follow(run)) as source:
                async for event in source:
                    if isinstance(event, End):
                        self._forget(run.id)
                    elif isinstance(event, ErrorEvent):
                        error = event
                    elif isinstance(event, Missed):
                        missed += event.missed
                    answer = as_answer(event, run.id, error, missed)
                    if answer is not None:
                        await self._send(answer)
        except WebSocketClosedError:
            return
        except Exception as failure:
            await self._refuse(failure, run.id)
        finally:
            self._forget(run.id)

    def _forget(self, execution: str) -> None:
        self._runs.pop(execution, None)
        if not self._runs:
            self._busy.clear()

    async def _cancel(self, wanted: StreamCancel) -> None:
        await self._services.executions.interrupt(self._caller, self._known.id, wanted.execution_id)

    # -- answers -----------------------------------------------------------------------------------------

    async def _tell_status(self) -> None:
        """Now, and every so often while something runs here."""
        row = self._known
        while True:
            try:
                _, seen = await self._services.sandboxes.status(self._caller, row)
                if seen is not None:
                    await self._send(StreamStatus(status="running", resources=usage_answer(row, seen.usage)))
            except WebSocketClosedError:
                return
            except ApiError as error:
                log.debug("no status of sandbox %s: %s", row.id, error.message)
            await asyncio.sleep(STATUS_EVERY)
            await self._busy.wait()

    async def _refuse(self, error: Exception, execution: str | None) -> None:
        if isinstance(error, ConnectionError) or getattr(error, "code", "") == "service_unavailable":
            error = await self._services.any.explained(self._known.id, error)
        known = as_error(500, (type(error), error, None))
        if known.code == "internal_error":
            log.error("a message could not be served", exc_info=error)
        answer = StreamError(
            code=known.code, message=known.message, execution_id=execution, details=known.details
        )
        with contextlib.suppress(WebSocketClosedError):
            await self._send(answer)

    def _ping(self) -> None:
        with contextlib.suppress(WebSocketClosedError):
            self.ping(b"")

    async def _send(self, answer: StreamAnswer) -> None:
        await self.write_message(_encode(answer).decode())

    # -- the end -----------------------------------------------------------------------------------------

    def _no_right(self) -> None:
        self.close(KEY_REVOKED, "the key was revoked or has expired, or the grant was taken back")
        self.on_close()
        asyncio.get_running_loop().call_later(_CUT_AFTER, self._cut)

    async def tell_to_return(self) -> None:
        """The gateway stops: what runs goes on, and can be followed from another connection."""
        self.close(RESTART, "the gateway restarts; connect again")
        await asyncio.sleep(_CUT_AFTER)
        self._cut()

    def _cut(self) -> None:
        """End the connection of a client that does not answer the close frame."""
        connection: Any = self.ws_connection
        if connection is not None:
            connection.client_terminated = True
            connection._abort()

    def _sandbox_ended(self, end: str, message: str | None) -> None:
        self._ending = asyncio.ensure_future(self._say_ended(end))

    async def _say_ended(self, end: str) -> None:
        if self._runs:  # each of them still has its end to tell
            await asyncio.wait(set(self._runs.values()), timeout=5.0)
        with contextlib.suppress(WebSocketClosedError):
            await self._send(StreamStatus(status="ended"))
        self.close(SANDBOX_ENDED, f"the sandbox has ended: {end}"[:120])


async def drain() -> None:
    """Close this process's stream websockets so that clients connect again; returns when all have closed."""
    await asyncio.gather(*(each.tell_to_return() for each in list(_open)))


class _Named(msgspec.Struct, rename="camel"):
    execution_id: str | None = None


def _named_in(body: bytes) -> str | None:
    """The execution that a message is about, as far as it says so: a refusal names it."""
    try:
        return _named.decode(body).execution_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_named = msgspec.json.Decoder(_Named)


def as_answer(event: Event, execution: str, error: ErrorEvent | None, missed: int) -> StreamAnswer | None:
    """The message that tells of an event; None for events that this protocol has no word for."""
    now = datetime.now(UTC)
    if isinstance(event, Stdout | Stderr):
        stream = "stderr" if isinstance(event, Stderr) else "stdout"
        return StreamOutput(execution_id=execution, stream=stream, content=event.text, timestamp=now)
    if isinstance(event, Display | Update):
        return StreamDisplay(
            execution_id=execution,
            data=dict(event.data),
            metadata=dict(event.metadata),
            is_main_result=isinstance(event, Display) and event.is_main_result,
            display_id=event.display_id,
            update=isinstance(event, Update),
            timestamp=now,
        )
    if isinstance(event, End):
        return StreamComplete(
            execution_id=execution,
            exit_code=event.exit_code,
            end=event.end,
            error=ExecutionErrorAnswer(name=error.name, value=error.value, traceback=error.traceback)
            if error is not None
            else None,
            execution_count=event.execution_count,
            missed=missed,
            timestamp=now,
        )
    return None
