"""Bodies of contexts, packages and commands, and the messages of the stream websocket."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from llmsafespace_gateway.rest.types import (
    Answer,
    Body,
    ContextAnswer,
    Encoding,
    Env,
    ExecutionErrorAnswer,
    Identifier,
    Name,
    Path,
    Text,
    Timeout,
    UsageAnswer,
)
from llmsafespace_protocol.limits import MAX_ARGUMENT

Argument = Annotated[str, Meta(max_length=MAX_ARGUMENT)]

# -- contexts, packages, commands --------------------------------------------------------------------


class ContextCreateBody(Body, kw_only=True):
    """A further kernel in the sandbox. A client-made `id` (a UUID) makes a repeated request one context."""

    id: Identifier | None = None
    language: Name | None = None
    name: Annotated[str, Meta(max_length=128)] = ""
    cwd: Path | None = None
    env: Env = {}


class ContextList(Answer, kw_only=True):
    """The sandbox's kernels, the default one first."""

    items: list[ContextAnswer]
    next: str | None = None


class PackagesBody(Body, kw_only=True):
    """Install packages. `wait` false answers at once with the running command."""

    packages: Annotated[list[Name], Meta(min_length=1, max_length=256)]
    manager: Name | None = None
    timeout: Timeout | None = None
    command_id: Identifier | None = None
    wait: bool = True


class CommandBody(Body, kw_only=True):
    """Run `command` in a shell, or `argv` as it is. A client-made `id` makes a repeated request one run.

    `background` true answers at once; otherwise the answer waits for the end. `keepStdin` leaves standard
    input open for the stdin endpoint.
    """

    id: Identifier | None = None
    command: Argument | None = None
    argv: Annotated[list[Argument], Meta(min_length=1, max_length=4096)] | None = None
    cwd: Path | None = None
    env: Env = {}
    timeout: Timeout | None = None
    stdin: Text | None = None
    stdin_encoding: Encoding = "utf-8"
    keep_stdin: bool = False
    background: bool = False


class CommandAnswer(Answer, kw_only=True):
    """A command; with its output where the request waited for it. `exitCode` is -N after signal N."""

    id: str
    command: str
    pid: int
    running: bool
    started_at: datetime
    completed_at: datetime | None = None
    exit_code: int | None = None
    end: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    truncated: bool = False
    missed: int = 0


class CommandList(Answer, kw_only=True):
    """The commands that the sandbox still knows, newest first."""

    items: list[CommandAnswer]
    next: str | None = None


class CommandStdinBody(Body, kw_only=True):
    """Write to a command's standard input; `eof` closes it afterwards."""

    data: Text = ""
    encoding: Encoding = "utf-8"
    eof: bool = False


class CommandSignalBody(Body, kw_only=True):
    """Send a signal to a command's process group."""

    signal: Annotated[str, Meta(pattern=r"^SIG[A-Z0-9]{1,10}$(?!\n)")] = "SIGTERM"


# -- the stream websocket ----------------------------------------------------------------------------


class StreamExecute(Body, tag_field="type", tag="execute", kw_only=True):
    """Client: run something. Its output comes as `output` and `display` with this `executionId`."""

    execution_id: Identifier | None = None
    mode: Literal["code", "command"] = "code"
    language: Name | None = None
    content: Text
    timeout: Timeout | None = None
    context: Identifier | None = None
    env: Env = {}
    stdin: Text | None = None


class StreamCancel(Body, tag_field="type", tag="cancel", kw_only=True):
    """Client: interrupt an execution."""

    execution_id: Identifier


class StreamPing(Body, tag_field="type", tag="ping", kw_only=True):
    """Client: are you there?"""

    timestamp: float | None = None


StreamRequest = StreamExecute | StreamCancel | StreamPing


class StreamStart(Answer, tag_field="type", tag="execution_start", kw_only=True):
    """Server: the execution is accepted."""

    execution_id: str
    timestamp: datetime


class StreamOutput(Answer, tag_field="type", tag="output", kw_only=True):
    """Server: a piece of text on stdout or stderr."""

    execution_id: str
    stream: str
    content: str
    timestamp: datetime


class StreamDisplay(Answer, tag_field="type", tag="display", kw_only=True):
    """Server: a rich output."""

    execution_id: str
    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    is_main_result: bool = False
    display_id: str | None = None
    update: bool = False
    timestamp: datetime


class StreamComplete(Answer, tag_field="type", tag="execution_complete", kw_only=True):
    """Server: the execution has ended; nothing of it follows."""

    execution_id: str
    exit_code: int
    end: str
    error: ExecutionErrorAnswer | None = None
    execution_count: int | None = None
    missed: int = 0
    timestamp: datetime


class StreamError(Answer, tag_field="type", tag="error", kw_only=True):
    """Server: a message of the client could not be served."""

    code: str
    message: str
    execution_id: str | None = None
    details: dict[str, Any] = {}


class StreamPong(Answer, tag_field="type", tag="pong", kw_only=True):
    """Server: the answer to `ping`."""

    timestamp: float | None = None


class StreamStatus(Answer, tag_field="type", tag="status_update", kw_only=True):
    """Server: what the sandbox uses."""

    status: str
    resources: UsageAnswer | None = None


StreamAnswer = (
    StreamStart | StreamOutput | StreamDisplay | StreamComplete | StreamError | StreamPong | StreamStatus
)
