"""Routes: execute, executions, contexts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import outcomes
from llmsafespace_gateway.rest.conversions import working_directory
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, NDJSON, SSE, Query, Routes
from llmsafespace_gateway.rest.types import (
    ContextAnswer,
    ExecuteBody,
    ExecutionAnswer,
    ExecutionList,
    ExecutionSummary,
)
from llmsafespace_gateway.rest.types_processes import ContextCreateBody, ContextList
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.services import Execute, runs
from llmsafespace_gateway.services.types import Collected, Event, Failure, SandboxRow, moment
from llmsafespace_protocol.requests import CommandInfo, ContextCreate, ContextInfo, ExecutionInfo

_LIMIT = Query("limit", "maximum number of items to return", "integer", 100, 1, 1000)
_AFTER = Query("after", "the sequence number after which to go on", "integer", 0, 0)
_encode = msgspec.json.Encoder().encode
_RESULT = 300  # bytes of a result, about
_MAX_SOURCE = 8 * 1024 * 1024
_BLANKS = bytes.maketrans(b"\r\n", b"  ")
_LINE_ENDS = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))

_SANDBOX = "/sandboxes/{sandbox_id}"
_STREAMS = (JSON, NDJSON, SSE)
ROUTES = Routes("Executions", on="sandbox")


def wants_stream(call: RestHandler) -> str | None:
    """The streaming type that the client's Accept header asks for, None for one JSON answer."""
    accept = call.request.headers.get("Accept", "")
    return next((kind for kind in (NDJSON, SSE) if kind in accept), None)


async def answer_run(call: RestHandler, run: runs.Run) -> ExecutionAnswer | None:
    """Follow a run to its end: streamed where the client asked for it, else as one answer."""
    kind = wants_stream(call)
    if kind is not None:
        await stream_run(call, run, kind)
        return None
    return await _answer(run, await call.while_connected(call.services.executions.outcome(run)))


async def _answer(run: runs.Run, collected: Collected) -> ExecutionAnswer:
    return await bulk.run(len(collected.results) * _RESULT, outcomes.answer, run.kind, collected)


async def stream_run(call: RestHandler, run: runs.Run, kind: str) -> None:
    """Send a run's events as they come, as NDJSON or server-sent events.

    While nothing happens an empty line (NDJSON) or a comment (SSE) is sent every 15 seconds.
    """
    call.set_header("Content-Type", kind)
    call.set_header("X-Execution-Id", run.id)
    call.set_header("X-Accel-Buffering", "no")
    await call.flush()
    await call.send(_pieces(call, run, kind), b"\n" if kind == NDJSON else b":\n\n")
    call.finish()


async def _pieces(call: RestHandler, run: runs.Run, kind: str) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(call.services.executions.follow(run)) as source:
        try:
            async for event in source:
                yield encode_event(event, kind)
        except ApiError as error:
            yield encode_event(Failure(code=error.code, message=error.message), kind)
        except ConnectionError:
            yield encode_event(
                Failure(code="service_unavailable", message="the sandbox's agent went away"), kind
            )


def encode_event(event: Event, kind: str) -> bytes:
    """One event as a line of NDJSON or a server-sent event whose id is its sequence number."""
    body = _one_line(_encode(event))
    if kind == NDJSON:
        return body + b"\n"
    name = type(event).__struct_config__.tag
    return f"id: {event.seq}\nevent: {name}\ndata: ".encode() + body + b"\n\n"


def _one_line(body: bytes) -> bytes:
    """JSON without anything at which some reader ends a line: else a kernel could write events of its own.

    Rich output is embedded as the kernel wrote it, with newlines between its tokens if it likes, and some
    characters beyond ASCII end a line for some readers.
    """
    if b"\n" in body or b"\r" in body:
        body = body.translate(_BLANKS)
    if not body.isascii():
        for character, escape in _LINE_ENDS:
            body = body.replace(character, escape)
    return body


@ROUTES(
    "POST",
    f"{_SANDBOX}/execute",
    action="sandbox.execute",
    scope="execute",
    request=ExecuteBody,
    produces=_STREAMS,
    max_body=4 * _MAX_SOURCE,
    errors=(404, 409, 410),
)
async def execute(call: RestHandler, row: SandboxRow) -> ExecutionAnswer | None:
    """Run code or a command; the answer waits for its end, or streams (Accept)."""
    body: ExecuteBody = call.body
    command = body.type == "command"
    for name in ("context", "language"):
        if command and getattr(body, name) is not None:
            raise invalid(f"body.{name}", "is for code; a command runs in the shell")
    if not command and body.stdin_encoding != "utf-8":
        raise invalid("body.stdinEncoding", "is for commands; code reads text")
    if not command and body.cwd is not None:
        raise invalid("body.cwd", "is for commands; code runs where its context is")
    wanted = Execute(
        id=body.execution_id or runs.new_id(),
        kind=body.type,
        content=body.content,
        context=body.context,
        language=body.language,
        cwd=working_directory(body.cwd),
        env=body.env,
        timeout=body.timeout,
        stdin=body.stdin,
        stdin_encoding=body.stdin_encoding,
    )
    run = await call.services.executions.begin(call.caller, row, wanted)
    call.accepted()
    return await answer_run(call, run)


@ROUTES("GET", f"{_SANDBOX}/executions", scope="sandboxes:read", query=(_LIMIT,), errors=(404, 410))
async def list_executions(call: RestHandler, row: SandboxRow) -> ExecutionList:
    """Executions and commands that the sandbox knows, newest first."""
    found = await call.services.executions.all(row)
    return ExecutionList(items=[outcomes.summary(info) for info in found[: call.query("limit")]])


@ROUTES(
    "GET",
    f"{_SANDBOX}/executions/{{execution_id}}",
    scope="sandboxes:read",
    query=(Query("wait", "answer when it has ended", "boolean", False),),
    errors=(404, 410),
)
async def get_execution(call: RestHandler, row: SandboxRow) -> ExecutionAnswer:
    """An execution; with its output once it has ended, which `wait` waits for."""
    executions = call.services.executions
    info = await executions.find(row, call.path_values["execution_id"])
    known = outcomes.summary(info)
    if known.end is None and not call.query("wait"):
        return ExecutionAnswer(**{name: getattr(known, name) for name in known.__struct_fields__})
    run = await executions.reopen(call.caller, row, info)
    return await _answer(run, await call.while_connected(executions.outcome(run)))


@ROUTES(
    "GET",
    f"{_SANDBOX}/executions/{{execution_id}}/events",
    scope="sandboxes:read",
    produces=(NDJSON, SSE),
    query=(_AFTER,),
    errors=(404, 410),
)
async def execution_events(call: RestHandler, row: SandboxRow) -> None:
    """Events of an execution from a sequence number on, until its end; in silence an empty line (SSE: a
    comment) every 15 s.
    """
    await stream_again(call, row, await call.services.executions.find(row, call.path_values["execution_id"]))


async def stream_again(call: RestHandler, row: SandboxRow, info: ExecutionInfo | CommandInfo) -> None:
    """Stream what an execution or command put out, and goes on to put out."""
    run = await call.services.executions.reopen(call.caller, row, info, _after(call))
    await stream_run(call, run, wants_stream(call) or NDJSON)


def _after(call: RestHandler) -> int:
    """Where to go on: the `after` query value, or an event source's Last-Event-ID."""
    last = call.request.headers.get("Last-Event-ID", "")
    return int(call.query("after") or (last if last.isascii() and last.isdigit() and len(last) < 19 else 0))


@ROUTES(
    "POST",
    f"{_SANDBOX}/executions/{{execution_id}}/interrupt",
    action="execution.interrupt",
    scope="execute",
    errors=(404, 410),
)
async def interrupt(call: RestHandler, row: SandboxRow) -> ExecutionSummary:
    """Interrupt an execution; variables stay."""
    execution = call.path_values["execution_id"]
    return outcomes.summary(await call.services.executions.interrupt(call.caller, row, execution))


# -- contexts --------------------------------------------------------------------------------------------


def context_answer(info: ContextInfo, default: str | None) -> ContextAnswer:
    """A context as the API shows it; `default` is the id of the sandbox's first one."""
    return ContextAnswer(
        id=info.id,
        name=info.name,
        language=info.language,
        state=info.state,
        cwd=info.cwd,
        created_at=moment(info.created_at),
        last_activity=moment(info.last_activity),
        connections=info.connections,
        executions=info.executions,
        end=info.end,
        is_default=info.id == default,
    )


@ROUTES("GET", f"{_SANDBOX}/contexts", scope="sandboxes:read", tag="Contexts", errors=(404, 410))
async def list_contexts(call: RestHandler, row: SandboxRow) -> ContextList:
    """The sandbox's kernels, the default one first."""
    found = await call.services.kernels.of_sandbox(row)
    default = await call.services.sandboxes.default_context(row.id)
    found.sort(key=lambda info: (info.id != default, info.created_at))
    return ContextList(items=[context_answer(info, default) for info in found])


@ROUTES(
    "POST",
    f"{_SANDBOX}/contexts",
    action="context.create",
    scope="execute",
    tag="Contexts",
    request=ContextCreateBody,
    request_optional=True,
    status=201,
    errors=(404, 409, 410),
)
async def create_context(call: RestHandler, row: SandboxRow) -> ContextAnswer:
    """Start a further kernel in the sandbox."""
    body: ContextCreateBody = call.body
    wanted = ContextCreate(
        id=body.id or str(uuid.uuid4()),
        language=body.language,
        name=body.name,
        cwd=working_directory(body.cwd),
        env=body.env,
    )
    return await _context(call, row, await call.services.kernels.add(call.caller, row, wanted))


@ROUTES(
    "DELETE",
    f"{_SANDBOX}/contexts/{{context_id}}",
    action="context.delete",
    scope="execute",
    tag="Contexts",
    status=204,
    errors=(404, 409, 410),
)
async def delete_context(call: RestHandler, row: SandboxRow) -> None:
    """End a kernel of the sandbox."""
    await call.services.kernels.remove(call.caller, row, call.path_values["context_id"])


@ROUTES(
    "POST",
    f"{_SANDBOX}/contexts/{{context_id}}/restart",
    action="context.restart",
    scope="execute",
    tag="Contexts",
    errors=(404, 410),
)
async def restart_context(call: RestHandler, row: SandboxRow) -> ContextAnswer:
    """Restart a kernel; its variables go."""
    context = call.path_values["context_id"]
    return await _context(call, row, await call.services.kernels.signal(call.caller, row, context, "restart"))


async def _context(call: RestHandler, row: SandboxRow, info: ContextInfo) -> ContextAnswer:
    return context_answer(info, await call.services.sandboxes.default_context(row.id))
