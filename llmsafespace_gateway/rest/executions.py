"""Routes: execute, executions, contexts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import runs as answers
from llmsafespace_gateway.rest.conversions import working_directory
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, NDJSON, SSE, Query, Route
from llmsafespace_gateway.rest.types import (
    ContextAnswer,
    ExecuteBody,
    ExecutionAnswer,
    ExecutionList,
    ExecutionSummary,
)
from llmsafespace_gateway.rest.types_processes import ContextCreateBody, ContextList
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.sandboxes.collecting import Collected, collect
from llmsafespace_gateway.sandboxes.events import End, Event, Failure
from llmsafespace_gateway.sandboxes.executions import moment
from llmsafespace_gateway.services import Execute, runs
from llmsafespace_protocol.requests import (
    ById,
    CommandInfo,
    ContextCreate,
    ContextInfo,
    Empty,
    ExecutionInfo,
    OpenCommand,
    OpenExecution,
)

_LIMIT = Query("limit", "maximum number of items to return", "integer", 100, 1, 1000)
_AFTER = Query("after", "the sequence number after which to go on", "integer", 0, 0)
_encode = msgspec.json.Encoder().encode
_RESULT = 300  # bytes of a result, about
_MAX_SOURCE = 8 * 1024 * 1024
_BLANKS = bytes.maketrans(b"\r\n", b"  ")
_LINE_ENDS = tuple((chr(code).encode(), b"\\u%04x" % code) for code in (0x85, 0x2028, 0x2029))


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
    source = runs.follow(call.sandboxes, run)
    async with contextlib.aclosing(source):
        collected = await call.while_connected(collect(source))
    call.metrics.executions.labels(collected.end.end).inc()
    return await _answer(run, collected)


async def _answer(run: runs.Run, collected: Collected) -> ExecutionAnswer:
    return await bulk.run(len(collected.results) * _RESULT, answers.answer, run.kind, collected)


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
    async with contextlib.aclosing(runs.follow(call.sandboxes, run)) as source:
        try:
            async for event in source:
                if isinstance(event, End):
                    call.metrics.executions.labels(event.end).inc()
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


async def execute(call: RestHandler) -> ExecutionAnswer | None:
    """POST …/execute."""
    body: ExecuteBody = call.body
    row = await call.sandbox("execute")
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


async def list_executions(call: RestHandler) -> ExecutionList:
    """GET …/executions."""
    row = await call.sandbox("sandboxes:read")
    code: list[ExecutionInfo] = await call.sandboxes.rpc(row.id, "executions.list", Empty())
    commands: list[CommandInfo] = await call.sandboxes.rpc(row.id, "commands.list", Empty())
    everything = [*map(answers.summary, code), *map(answers.summary, commands)]
    everything.sort(key=lambda info: info.started_at, reverse=True)
    return ExecutionList(items=everything[: call.query("limit")])


async def get_execution(call: RestHandler) -> ExecutionAnswer:
    """GET …/executions/{execution_id}: with its output once it has ended."""
    row = await call.sandbox("sandboxes:read")
    info = await runs.find(call.sandboxes, row.id, call.path_values["execution_id"])
    known = answers.summary(info)
    if known.end is None and not call.query("wait"):
        return ExecutionAnswer(**{name: getattr(known, name) for name in known.__struct_fields__})
    run = await runs.begin(call.sandboxes, row.id, _followed(call, info, 0))
    async with contextlib.aclosing(runs.follow(call.sandboxes, run)) as source:
        return await _answer(run, await call.while_connected(collect(source)))


async def execution_events(call: RestHandler) -> None:
    """GET …/executions/{execution_id}/events."""
    row = await call.sandbox("sandboxes:read")
    info = await runs.find(call.sandboxes, row.id, call.path_values["execution_id"])
    await follow_events(call, row.id, _followed(call, info, after(call)))


async def follow_events(call: RestHandler, sandbox_id: str, open_: OpenExecution | OpenCommand) -> None:
    """Stream what an execution or command put out, and goes on to put out."""
    run = await runs.begin(call.sandboxes, sandbox_id, open_)
    await stream_run(call, run, wants_stream(call) or NDJSON)


def after(call: RestHandler) -> int:
    """Where to go on: the `after` query value, or an event source's Last-Event-ID."""
    last = call.request.headers.get("Last-Event-ID", "")
    return int(call.query("after") or (last if last.isascii() and last.isdigit() and len(last) < 19 else 0))


def _followed(
    call: RestHandler, info: ExecutionInfo | CommandInfo, start: int
) -> OpenExecution | OpenCommand:
    if isinstance(info, CommandInfo):
        return OpenCommand(command=info.id, after=start)
    return OpenExecution(execution=info.id, after=start, principal=call.principal.user_id)


async def interrupt(call: RestHandler) -> ExecutionSummary:
    """POST …/executions/{execution_id}/interrupt."""
    row = await call.sandbox("execute")
    ended = await call.services.executions.interrupt(call.caller, row, call.path_values["execution_id"])
    return answers.summary(ended)


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


async def list_contexts(call: RestHandler) -> ContextList:
    """GET …/contexts."""
    row = await call.sandbox("sandboxes:read")
    found: list[ContextInfo] = await call.sandboxes.rpc(row.id, "contexts.list", Empty())
    default = await call.default_kernel(row.id)
    found.sort(key=lambda info: (info.id != default, info.created_at))
    return ContextList(items=[context_answer(info, default) for info in found])


async def create_context(call: RestHandler) -> ContextAnswer:
    """POST …/contexts."""
    body: ContextCreateBody = call.body
    row = await call.sandbox("execute")
    wanted = ContextCreate(
        id=body.id or str(uuid.uuid4()),
        language=body.language,
        name=body.name,
        cwd=working_directory(body.cwd),
        env=body.env,
    )
    kernel = await call.sandboxes.create_context(row, wanted)
    call.audit("context.create", row.id, context=kernel.id)
    info: ContextInfo = await call.sandboxes.rpc(row.id, "contexts.get", ById(id=kernel.id))
    return context_answer(info, await call.default_kernel(row.id))


async def delete_context(call: RestHandler) -> None:
    """DELETE …/contexts/{context_id}."""
    row = await call.sandbox("execute")
    context = call.path_values["context_id"]
    await call.sandboxes.remove_context(row.id, context)
    call.audit("context.delete", row.id, context=context)


async def restart_context(call: RestHandler) -> ContextAnswer:
    """POST …/contexts/{context_id}/restart."""
    row = await call.sandbox("execute")
    context = call.path_values["context_id"]
    info: ContextInfo = await call.sandboxes.rpc(row.id, "contexts.restart", ById(id=context))
    call.audit("context.restart", row.id, context=context)
    return context_answer(info, await call.default_kernel(row.id))


_SANDBOX = "/sandboxes/{sandbox_id}"
_STREAMS = (JSON, NDJSON, SSE)

ROUTES = [
    Route(
        method="POST",
        path=f"{_SANDBOX}/execute",
        action="sandbox.execute",
        handle=execute,
        scope="execute",
        tag="Executions",
        summary="Run code or a command; the answer waits for its end, or streams (Accept)",
        request=ExecuteBody,
        response=ExecutionAnswer,
        produces=_STREAMS,
        max_body=4 * _MAX_SOURCE,
        errors=(404, 409, 410),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/executions",
        handle=list_executions,
        scope="sandboxes:read",
        tag="Executions",
        summary="Executions and commands that the sandbox knows, newest first",
        response=ExecutionList,
        query=(_LIMIT,),
        errors=(404, 410),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/executions/{{execution_id}}",
        handle=get_execution,
        scope="sandboxes:read",
        tag="Executions",
        summary="An execution; with its output once it has ended, which `wait` waits for",
        response=ExecutionAnswer,
        query=(Query("wait", "answer when it has ended", "boolean", False),),
        errors=(404, 410),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/executions/{{execution_id}}/events",
        handle=execution_events,
        scope="sandboxes:read",
        tag="Executions",
        summary="Events of an execution from a sequence number on, until its end; "
        "in silence an empty line (SSE: a comment) every 15 s",
        produces=(NDJSON, SSE),
        query=(_AFTER,),
        errors=(404, 410),
    ),
    Route(
        method="POST",
        path=f"{_SANDBOX}/executions/{{execution_id}}/interrupt",
        handle=interrupt,
        scope="execute",
        tag="Executions",
        summary="Interrupt an execution; variables stay",
        response=ExecutionSummary,
        errors=(404, 410),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/contexts",
        handle=list_contexts,
        scope="sandboxes:read",
        tag="Contexts",
        summary="The sandbox's kernels, the default one first",
        response=ContextList,
        errors=(404, 410),
    ),
    Route(
        method="POST",
        path=f"{_SANDBOX}/contexts",
        handle=create_context,
        scope="execute",
        tag="Contexts",
        summary="Start a further kernel in the sandbox",
        request=ContextCreateBody,
        request_optional=True,
        response=ContextAnswer,
        status=201,
        errors=(404, 409, 410),
    ),
    Route(
        method="DELETE",
        path=f"{_SANDBOX}/contexts/{{context_id}}",
        handle=delete_context,
        scope="execute",
        tag="Contexts",
        summary="End a kernel of the sandbox",
        status=204,
        errors=(404, 409, 410),
    ),
    Route(
        method="POST",
        path=f"{_SANDBOX}/contexts/{{context_id}}/restart",
        handle=restart_context,
        scope="execute",
        tag="Contexts",
        summary="Restart a kernel; its variables go",
        response=ContextAnswer,
        errors=(404, 410),
    ),
]
