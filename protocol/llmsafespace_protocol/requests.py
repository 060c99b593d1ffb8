"""What a stream can be opened for, and the requests and answers of the `rpc` stream.

Every document is JSON. Times are seconds since the epoch (float), durations seconds, sizes bytes.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Camel case on the wire, snake case in Python."""


class Fixed(msgspec.Struct, omit_defaults=True, rename="camel", frozen=True):
    """A Message that cannot be changed, and so can be another's default."""


# -- opening a stream ----------------------------------------------------------------------------------


class OpenRpc(Message, tag_field="kind", tag="rpc"):
    """Requests and answers, multiplexed by `id`: one such stream per sandbox serves all REST calls."""


class OpenChannels(Message, tag_field="kind", tag="channels"):
    """All channels of one context for one client session.

    The agent sends KERNEL frames (`u64 seq | v1`) and JSON `Gap` frames; the gateway sends KERNEL frames
    (v1) and JSON `Ack` frames. `after` None resumes the session's cursor, or starts live when the agent
    does not know the session. `durable` makes execution ids of this stream idempotent. `principal` is who is
    connected: sessions, cursors and what only the asker of a request gets are its own.
    """

    context: str
    session: str
    after: int | None = None
    durable: bool = False
    principal: str = ""


class OpenExecution(Message, tag_field="kind", tag="execution"):
    """The messages of one execution: KERNEL frames and `Gap` frames, then one `ExecutionInfo`, then close.

    With `code` (or `command`, a shell line) the execution starts unless its id has run already; the same
    id with other content, or of another `principal`, is a conflict. Without either, it is only followed:
    what is for its asker alone (input requests, its reply) by the same principal only.
    """

    execution: str
    after: int = 0
    context: str | None = None
    language: str | None = None
    code: str | None = None
    env: dict[str, str] = {}
    timeout: float | None = None
    stdin: str | None = None
    principal: str = ""


class OpenCommand(Message, tag_field="kind", tag="command"):
    """A command's output: JSON `CommandOutput` and `Gap` frames, then one `CommandInfo`, then close."""

    command: str
    after: int = 0


class OpenFileRead(Message, tag_field="kind", tag="file_read"):
    """JSON `FileInfo`, DATA frames, END. `length` None reads to the end."""

    path: str
    offset: int = 0
    length: int | None = None


class OpenFileWrite(Message, tag_field="kind", tag="file_write"):
    """The gateway sends DATA frames and END; the agent answers with JSON `FileInfo`.

    The file appears whole or not at all. `size`, where known, is checked. Parents are made.
    """

    path: str
    size: int | None = None
    mode: int = 0o644
    if_match: str | None = None


class OpenFileWatch(Message, tag_field="kind", tag="file_watch"):
    """JSON `FileEvent` frames until either side closes."""

    path: str
    recursive: bool = False


Open = OpenRpc | OpenChannels | OpenExecution | OpenCommand | OpenFileRead | OpenFileWrite | OpenFileWatch


class Opened(Message):
    """The agent's first JSON frame on every opened stream; `error` set means: refused, and closed."""

    error: Error | None = None
    head: int | None = None  # the journal's newest sequence number, on channels streams


class Error(Message):
    """A refusal, in the words of the public API (`code` is one of its error codes)."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Gap(Message):
    """`gap` messages were lost to the quota before this point; the next has sequence number `resume`."""

    gap: int
    resume: int


class Ack(Message):
    """The gateway has flushed everything up to `ack` to the client: the session's cursor."""

    ack: int


# -- the rpc stream --------------------------------------------------------------------------------------


class Request(Message):
    """One call. Methods and their parameter types are listed in METHODS."""

    id: int
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


class Answer(Message):
    """The answer to the request of the same id: `result` or `error`. Answers may come in any order."""

    id: int
    result: msgspec.Raw = msgspec.Raw()  # a union with None would not be left undecoded
    error: Error | None = None


class Limits(Fixed, frozen=True):
    """When the agent ends an execution or the whole sandbox by itself."""

    timeout: float | None = 300.0  # the longest one durable execution may run
    idle_timeout: float | None = 600.0
    max_lifetime: float = 86400.0


class BindRequest(Message):
    """Make a warm sandbox personal, once.

    `contextId` becomes the id of the default context (a Jupyter kernel id).
    """

    claim_id: str
    sandbox_id: str
    context_id: str
    language: str | None = None
    env: dict[str, str] = {}
    cwd: str | None = None
    timezone: str | None = None
    limits: Limits = Limits()
    egress_token: str | None = None
    labels: dict[str, str] = {}


class ContextInfo(Message):
    """A kernel of the sandbox. `state` is starting, idle, busy, restarting or dead."""

    id: str
    name: str
    language: str
    state: str
    cwd: str
    created_at: float
    last_activity: float
    connections: int = 0
    executions: int = 0
    head: int = 0
    end: str | None = None  # why it is dead: oom, kernel_died


class ContextCreate(Message):
    """A further context; `id` is made by the caller, so that a repeated call makes one context."""

    id: str
    language: str | None = None
    name: str = ""
    cwd: str | None = None
    env: dict[str, str] = {}


class ById(Message):
    """Parameters of methods that name one thing."""

    id: str


class ExecutionInfo(Message):
    """One durable execution. `end` None means it is queued or running.

    `first`..`last` are its sequence numbers in its context's journal. `principal` asked, and `session`
    reads its replies.
    """

    id: str
    context: str
    session: str
    status: str  # queued, running, ended
    started_at: float
    completed_at: float | None = None
    end: str | None = None
    message: str | None = None  # why, where `end` is not the kernel's own word
    first: int | None = None
    last: int | None = None
    execution_count: int | None = None
    principal: str = ""


class FileInfo(Message):
    """A file or folder beneath the workspace; `path` is absolute inside the sandbox."""

    path: str
    size: int
    created_at: float
    modified_at: float
    is_directory: bool
    etag: str = ""
    mode: int = 0o644


class FilePath(Message):
    """Parameters of files.stat, files.mkdir and files.remove (`recursive` for folders that are not empty)."""

    path: str
    recursive: bool = False


class FileList(Message):
    """Parameters of files.list; `depth` levels below `path`, at most `limit` entries."""

    path: str = "/workspace"
    depth: int = 1
    limit: int = 10_000


class FileMove(Message):
    """Parameters of files.move. `overwrite` replaces a file at `target`."""

    source: str
    target: str
    overwrite: bool = False


class FileEvent(Message):
    """Something changed: created, modified, deleted, moved."""

    event: str
    path: str


class CommandStart(Message):
    """Run `command` in a shell, or `argv` as it is. The caller makes `id`: a repeated call starts one."""

    id: str
    command: str | None = None
    argv: list[str] | None = None
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout: float | None = None
    stdin: str | None = None
    stdin_encoding: str = "utf-8"  # or base64, for any bytes
    keep_stdin: bool = False  # leave standard input open for commands.stdin


class CommandInfo(Message):
    """A command. `exitCode` is -N after signal N; `end` ok, error, timeout, interrupted, oom, expired."""

    id: str
    command: str
    pid: int
    running: bool
    started_at: float
    completed_at: float | None = None
    exit_code: int | None = None
    end: str | None = None
    head: int = 0


class CommandOutput(Message):
    """A piece of output, `stream` stdout or stderr; undecodable bytes are replaced."""

    seq: int
    stream: str
    text: str


class CommandSignal(Message):
    """Send a signal (by name, as SIGTERM) to a command's process group."""

    id: str
    signal: str = "SIGTERM"


class CommandStdin(Message):
    """Write to a command's standard input; `eof` closes it."""

    id: str
    data: str = ""
    encoding: str = "utf-8"  # or base64, for any bytes
    eof: bool = False


class PackagesInstall(Message):
    """Install packages with the runtime's package manager (or `manager`), as a command of this id."""

    id: str
    packages: list[str]
    manager: str | None = None
    timeout: float | None = None
    gate: bool = False  # executions wait until this installation has ended


class Shutdown(Message):
    """End the sandbox; `end` is the honest word (terminated, expired)."""

    end: str = "terminated"


class Ready(Message):
    """Parameters of `ready`: answer when a kernel is parked (or runs), or after `timeout`."""

    timeout: float = 60.0


class Usage(Fixed, frozen=True):
    """What the sandbox's processes use now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    processes: int = 0


class Status(Message):
    """The agent's account of its sandbox. `state` is starting, ready (parked, unbound), bound, ending."""

    state: str
    started_at: float
    last_activity: float
    sandbox_id: str | None = None
    bound_at: float | None = None
    contexts: list[ContextInfo] = []
    usage: Usage = Usage()
    connections: int = 0
    expires_at: float | None = None
    problems: list[str] = []  # preload scripts that failed, limits that could not be set


class Empty(Message):
    """No parameters, or nothing to answer."""


METHODS: dict[str, tuple[type, Any]] = {
    "status": (Empty, Status),
    "ready": (Ready, Status),
    "bind": (BindRequest, Status),
    "set_limits": (Limits, Status),
    "shutdown": (Shutdown, Empty),
    "contexts.list": (Empty, list[ContextInfo]),
    "contexts.create": (ContextCreate, ContextInfo),
    "contexts.get": (ById, ContextInfo),
    "contexts.remove": (ById, Empty),
    "contexts.restart": (ById, ContextInfo),
    "contexts.interrupt": (ById, ContextInfo),
    "executions.list": (Empty, list[ExecutionInfo]),
    "executions.get": (ById, ExecutionInfo),
    "executions.interrupt": (ById, ExecutionInfo),
    "files.list": (FileList, list[FileInfo]),
    "files.stat": (FilePath, FileInfo),
    "files.mkdir": (FilePath, FileInfo),
    "files.remove": (FilePath, Empty),
    "files.move": (FileMove, FileInfo),
    "commands.start": (CommandStart, CommandInfo),
    "commands.list": (Empty, list[CommandInfo]),
    "commands.get": (ById, CommandInfo),
    "commands.signal": (CommandSignal, CommandInfo),
    "commands.stdin": (CommandStdin, CommandInfo),
    "packages.install": (PackagesInstall, CommandInfo),
}
