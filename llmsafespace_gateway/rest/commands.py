"""Routes: commands and packages."""

from __future__ import annotations

import contextlib

from llmsafespace_gateway.access.executions import COMMAND, PACKAGES
from llmsafespace_gateway.rest.conversions import check_package, command_answer, working_directory
from llmsafespace_gateway.rest.executions import after, follow_events, stream_run, wants_stream
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, NDJSON, SSE, Query, Route
from llmsafespace_gateway.rest.types_processes import (
    CommandAnswer,
    CommandBody,
    CommandList,
    CommandSignalBody,
    CommandStdinBody,
    PackagesBody,
)
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.sandboxes.collecting import collect
from llmsafespace_gateway.services import runs
from llmsafespace_protocol.requests import (
    ById,
    CommandInfo,
    CommandSignal,
    CommandStart,
    CommandStdin,
    Empty,
    OpenCommand,
    PackagesInstall,
)


async def _answer(
    call: RestHandler, sandbox_id: str, info: CommandInfo, *, wait: bool
) -> CommandAnswer | None:
    kind = wants_stream(call)
    if kind is None and not wait:
        return command_answer(info)
    run = await runs.begin(call.sandboxes, sandbox_id, OpenCommand(command=info.id))
    if kind is not None:
        await stream_run(call, run, kind)
        return None
    async with contextlib.aclosing(runs.follow(call.sandboxes, run)) as source:
        collected = await call.while_connected(collect(source))
    call.metrics.executions.labels(collected.end.end).inc()
    answer = command_answer(info)
    answer.running = False
    answer.completed_at = collected.end.completed_at
    answer.exit_code, answer.end = collected.end.exit_code, collected.end.end
    answer.stdout, answer.stderr = collected.stdout, collected.stderr
    answer.truncated, answer.missed = collected.truncated, collected.missed
    return answer


async def start_command(call: RestHandler) -> CommandAnswer | None:
    """POST …/commands."""
    body: CommandBody = call.body
    row = await call.sandbox("execute")
    if (body.command is None) == (body.argv is None):
        raise invalid("body", "expected either `command` (for a shell) or `argv`")
    start = CommandStart(
        id=body.id or runs.new_id(),
        command=body.command,
        argv=body.argv,
        cwd=working_directory(body.cwd),
        env=body.env,
        timeout=body.timeout if body.background else body.timeout or row.timeout,
        stdin=body.stdin,
        stdin_encoding=body.stdin_encoding,
        keep_stdin=body.keep_stdin,
    )
    info = await call.services.executions.start_command(call.caller, row, start, background=body.background)
    call.accepted()
    return await _answer(call, row.id, info, wait=not body.background)


async def install_packages(call: RestHandler) -> CommandAnswer | None:
    """POST …/packages."""
    body: PackagesBody = call.body
    row = await call.sandbox("execute")
    for index, package in enumerate(body.packages):
        check_package(package, f"body.packages[{index}]")
    install = PackagesInstall(
        id=body.command_id or runs.new_id(),
        packages=body.packages,
        manager=body.manager,
        timeout=body.timeout,
    )
    info = await call.services.executions.install(call.caller, row, install)
    call.accepted()
    return await _answer(call, row.id, info, wait=body.wait)


async def list_commands(call: RestHandler) -> CommandList:
    """GET …/commands."""
    row = await call.sandbox("sandboxes:read")
    found: list[CommandInfo] = await call.sandboxes.rpc(row.id, "commands.list", Empty())
    found.sort(key=lambda info: info.started_at, reverse=True)
    return CommandList(items=[command_answer(info) for info in found[: call.query("limit")]])


async def _one(call: RestHandler, scope: str) -> tuple[str, CommandInfo]:
    row = await call.sandbox(scope)
    info: CommandInfo = await call.sandboxes.rpc(
        row.id, "commands.get", ById(id=call.path_values["command_id"])
    )
    return row.id, info


async def get_command(call: RestHandler) -> CommandAnswer | None:
    """GET …/commands/{command_id}: with its output once it has ended."""
    sandbox_id, info = await _one(call, "sandboxes:read")
    return await _answer(call, sandbox_id, info, wait=call.query("wait") or not info.running)


async def command_events(call: RestHandler) -> None:
    """GET …/commands/{command_id}/events."""
    sandbox_id, info = await _one(call, "sandboxes:read")
    await follow_events(call, sandbox_id, OpenCommand(command=info.id, after=after(call)))


async def kill_command(call: RestHandler) -> None:
    """DELETE …/commands/{command_id}: kill it, where it still runs."""
    sandbox_id, info = await _one(call, "execute")
    if info.running:
        await call.sandboxes.rpc(sandbox_id, "commands.signal", CommandSignal(id=info.id, signal="SIGKILL"))
        call.audit("command.kill", sandbox_id, command_id=info.id)


async def signal_command(call: RestHandler) -> CommandAnswer:
    """POST …/commands/{command_id}/signal."""
    body: CommandSignalBody = call.body
    sandbox_id, info = await _one(call, "execute")
    wanted = CommandSignal(id=info.id, signal=body.signal)
    signalled: CommandInfo = await call.sandboxes.rpc(sandbox_id, "commands.signal", wanted)
    call.audit("command.signal", sandbox_id, command_id=info.id, signal=body.signal)
    return command_answer(signalled)


async def command_stdin(call: RestHandler) -> CommandAnswer:
    """POST …/commands/{command_id}/stdin."""
    body: CommandStdinBody = call.body
    sandbox_id, info = await _one(call, "execute")
    wanted = CommandStdin(id=info.id, data=body.data, encoding=body.encoding, eof=body.eof)
    written: CommandInfo = await call.sandboxes.rpc(sandbox_id, "commands.stdin", wanted)
    return command_answer(written)


_SANDBOX = "/sandboxes/{sandbox_id}"
_COMMAND = f"{_SANDBOX}/commands/{{command_id}}"
_STREAMS = (JSON, NDJSON, SSE)

ROUTES = [
    Route(
        method="POST",
        path=f"{_SANDBOX}/packages",
        action=PACKAGES,
        handle=install_packages,
        scope="execute",
        tag="Commands",
        summary="Install packages; the answer waits for the end, streams (Accept), or comes at once",
        request=PackagesBody,
        response=CommandAnswer,
        produces=_STREAMS,
        errors=(404, 409, 410),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/commands",
        handle=list_commands,
        scope="sandboxes:read",
        tag="Commands",
        summary="Commands that the sandbox knows, newest first",
        response=CommandList,
        query=(Query("limit", "maximum number of items to return", "integer", 100, 1, 1000),),
        errors=(404, 410),
    ),
    Route(
        method="POST",
        path=f"{_SANDBOX}/commands",
        action=COMMAND,
        handle=start_command,
        scope="execute",
        tag="Commands",
        summary="Run a command; the answer waits for its end, streams (Accept), or comes at once",
        request=CommandBody,
        response=CommandAnswer,
        status=201,
        produces=_STREAMS,
        max_body=32 * 1024 * 1024,
        errors=(404, 409, 410),
    ),
    Route(
        method="GET",
        path=_COMMAND,
        handle=get_command,
        scope="sandboxes:read",
        tag="Commands",
        summary="A command; with its output once it has ended, which `wait` waits for",
        response=CommandAnswer,
        query=(Query("wait", "answer when it has ended", "boolean", False),),
        errors=(404, 410),
    ),
    Route(
        method="DELETE",
        path=_COMMAND,
        handle=kill_command,
        scope="execute",
        tag="Commands",
        summary="Kill a command",
        status=204,
        errors=(404, 410),
    ),
    Route(
        method="GET",
        path=f"{_COMMAND}/events",
        handle=command_events,
        scope="sandboxes:read",
        tag="Commands",
        summary="Output of a command from a sequence number on, until its end",
        produces=(NDJSON, SSE),
        query=(Query("after", "the sequence number after which to go on", "integer", 0, 0),),
        errors=(404, 410),
    ),
    Route(
        method="POST",
        path=f"{_COMMAND}/stdin",
        handle=command_stdin,
        scope="execute",
        tag="Commands",
        summary="Write to a command's standard input",
        request=CommandStdinBody,
        response=CommandAnswer,
        max_body=16 * 1024 * 1024,
        errors=(404, 409, 410),
    ),
    Route(
        method="POST",
        path=f"{_COMMAND}/signal",
        handle=signal_command,
        scope="execute",
        tag="Commands",
        summary="Send a signal to a command's process group",
        request=CommandSignalBody,
        request_optional=True,
        response=CommandAnswer,
        errors=(404, 409, 410),
    ),
]
