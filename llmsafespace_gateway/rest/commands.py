"""Routes: commands and packages."""

from __future__ import annotations

from llmsafespace_gateway.access.executions import COMMAND, PACKAGES
from llmsafespace_gateway.rest.conversions import check_package, command_answer, working_directory
from llmsafespace_gateway.rest.executions import stream_again, stream_run, wants_stream
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, NDJSON, SSE, Query, Routes
from llmsafespace_gateway.rest.types_processes import (
    CommandAnswer,
    CommandBody,
    CommandList,
    CommandSignalBody,
    CommandStdinBody,
    PackagesBody,
)
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.services import runs
from llmsafespace_gateway.services.types import SandboxRow
from llmsafespace_protocol.requests import (
    CommandInfo,
    CommandSignal,
    CommandStart,
    CommandStdin,
    PackagesInstall,
)

_SANDBOX = "/sandboxes/{sandbox_id}"
_COMMAND = f"{_SANDBOX}/commands/{{command_id}}"
_STREAMS = (JSON, NDJSON, SSE)
ROUTES = Routes("Commands", on="sandbox")


async def _answer(
    call: RestHandler, row: SandboxRow, info: CommandInfo, *, wait: bool, begun: bool = False
) -> CommandAnswer | None:
    kind = wants_stream(call)
    if kind is None and not wait:
        return command_answer(info)
    executions = call.services.executions
    run = await executions.reopen(call.caller, row, info, begun=begun)
    if kind is not None:
        await stream_run(call, run, kind)
        return None
    collected = await call.while_connected(executions.outcome(run))
    answer = command_answer(info)
    answer.running = False
    answer.completed_at = collected.end.completed_at
    answer.exit_code, answer.end = collected.end.exit_code, collected.end.end
    answer.stdout, answer.stderr = collected.stdout, collected.stderr
    answer.truncated, answer.missed = collected.truncated, collected.missed
    return answer


@ROUTES(
    "POST",
    f"{_SANDBOX}/commands",
    action=COMMAND,
    scope="execute",
    request=CommandBody,
    status=201,
    produces=_STREAMS,
    max_body=32 * 1024 * 1024,
    errors=(404, 409, 410),
)
async def start_command(call: RestHandler, row: SandboxRow) -> CommandAnswer | None:
    """Run a command; the answer waits for its end, streams (Accept), or comes at once."""
    body: CommandBody = call.body
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
    return await _answer(call, row, info, wait=not body.background, begun=True)


@ROUTES(
    "POST",
    f"{_SANDBOX}/packages",
    action=PACKAGES,
    scope="execute",
    request=PackagesBody,
    produces=_STREAMS,
    errors=(404, 409, 410),
)
async def install_packages(call: RestHandler, row: SandboxRow) -> CommandAnswer | None:
    """Install packages; the answer waits for the end, streams (Accept), or comes at once."""
    body: PackagesBody = call.body
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
    return await _answer(call, row, info, wait=body.wait, begun=True)


@ROUTES(
    "GET",
    f"{_SANDBOX}/commands",
    scope="sandboxes:read",
    query=(Query("limit", "maximum number of items to return", "integer", 100, 1, 1000),),
    errors=(404, 410),
)
async def list_commands(call: RestHandler, row: SandboxRow) -> CommandList:
    """Commands that the sandbox knows, newest first."""
    found = await call.services.commands.all(row)
    return CommandList(items=[command_answer(info) for info in found[: call.query("limit")]])


@ROUTES(
    "GET",
    _COMMAND,
    scope="sandboxes:read",
    query=(Query("wait", "answer when it has ended", "boolean", False),),
    errors=(404, 410),
)
async def get_command(call: RestHandler, row: SandboxRow) -> CommandAnswer | None:
    """A command; with its output once it has ended, which `wait` waits for."""
    info = await call.services.commands.find(row, call.path_values["command_id"])
    return await _answer(call, row, info, wait=call.query("wait") or not info.running)


@ROUTES(
    "GET",
    f"{_COMMAND}/events",
    scope="sandboxes:read",
    produces=(NDJSON, SSE),
    query=(Query("after", "the sequence number after which to go on", "integer", 0, 0),),
    errors=(404, 410),
)
async def command_events(call: RestHandler, row: SandboxRow) -> None:
    """Output of a command from a sequence number on, until its end."""
    await stream_again(call, row, await call.services.commands.find(row, call.path_values["command_id"]))


@ROUTES("DELETE", _COMMAND, action="command.kill", scope="execute", status=204, errors=(404, 410))
async def kill_command(call: RestHandler, row: SandboxRow) -> None:
    """Kill a command."""
    await call.services.commands.kill(call.caller, row, call.path_values["command_id"])


@ROUTES(
    "POST",
    f"{_COMMAND}/signal",
    action="command.signal",
    scope="execute",
    request=CommandSignalBody,
    request_optional=True,
    errors=(404, 409, 410),
)
async def signal_command(call: RestHandler, row: SandboxRow) -> CommandAnswer:
    """Send a signal to a command's process group."""
    body: CommandSignalBody = call.body
    wanted = CommandSignal(id=call.path_values["command_id"], signal=body.signal)
    return command_answer(await call.services.commands.signal(call.caller, row, wanted))


@ROUTES(
    "POST",
    f"{_COMMAND}/stdin",
    scope="execute",
    request=CommandStdinBody,
    max_body=16 * 1024 * 1024,
    errors=(404, 409, 410),
)
async def command_stdin(call: RestHandler, row: SandboxRow) -> CommandAnswer:
    """Write to a command's standard input."""
    body: CommandStdinBody = call.body
    wanted = CommandStdin(
        id=call.path_values["command_id"], data=body.data, encoding=body.encoding, eof=body.eof
    )
    return command_answer(await call.services.commands.write(row, wanted))
