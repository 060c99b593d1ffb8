"""The kinds of streams that the gateway can open, and the requests and answers of the `rpc` stream.

Every document is JSON. Times are seconds since the epoch (float), durations seconds, sizes bytes.
An id that the caller makes (context, execution, command) makes the call idempotent.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Base of all documents: camelCase in JSON, snake_case in Python; defaults are left out in JSON."""


class Fixed(msgspec.Struct, omit_defaults=True, rename="camel", frozen=True):
    """An immutable Message. It can therefore be the default value of another message's field."""


# -- opening a stream ----------------------------------------------------------------------------------


class OpenRpc(Message, tag_field="kind", tag="rpc"):
    """Requests and answers, matched by `id`. One such stream per sandbox serves all REST calls."""


class OpenChannels(Message, tag_field="kind", tag="channels"):
    """All channels of one context for one client session.

    The agent sends KERNEL frames (`u64 seq | v1`) and JSON `Gap` frames; the gateway sends KERNEL frames
    (v1) and JSON `Ack` frames. If `after` is None, the stream resumes at the session's cursor; if the agent
    does not know the session, it starts with the next new message. `durable` makes execution ids of this
    stream idempotent. `principal` is the connected user: sessions and cursors belong to it, and only the
    principal that sent a request gets its replies and input requests.
    """

    context: str
    session: str
    after: int | None = None
    durable: bool = False
    principal: str = ""


class OpenExecution(Message, tag_field="kind", tag="execution"):
    """The messages of one execution: KERNEL frames and `Gap` frames, then one `ExecutionInfo`, then close.

    With `code` the execution starts, unless an execution of this id exists. The same id with other content,
    or from another `principal`, is a conflict. Without `code` the stream only follows the execution; only
    its own principal gets its input requests and its reply.
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
    """The output of a command: JSON `CommandOutput` and `Gap` frames, then one `CommandInfo`, then close."""

    command: str
    after: int = 0


class OpenFileRead(Message, tag_field="kind", tag="file_read"):
    """The content of a file: JSON `FileInfo`, DATA frames, END. If `length` is None, to the file's end."""

    path: str
    offset: int = 0
    length: int | None = None


class OpenFileWrite(Message, tag_field="kind", tag="file_write"):
    """An upload: the gateway sends DATA frames and END; the agent answers with JSON `FileInfo`.

    The file appears completely or not at all. Missing parent folders are created. If `size` (bytes) is
    given, the agent checks it.
    """

    path: str
    size: int | None = None
    mode: int = 0o644
    if_match: str | None = None


class OpenFileWatch(Message, tag_field="kind", tag="file_watch"):
    """Changes below a path: JSON `FileEvent` frames until either side closes."""

    path: str
    recursive: bool = False


Open = OpenRpc | OpenChannels | OpenExecution | OpenCommand | OpenFileRead | OpenFileWrite | OpenFileWatch


class Opened(Message):
    """The agent's first JSON frame on every stream. If `error` is set, the agent refuses and closes it."""

    error: Error | None = None
    head: int | None = None  # on channels streams: the newest sequence number of the journal


class Error(Message):
    """A refused request. `code` is one of the error codes of the public API."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Gap(Message):
    """`gap` messages before this point are no longer in the journal; the next one has number `resume`."""

    gap: int
    resume: int


class Ack(Message):
    """The gateway has sent everything up to number `ack` to the client. Sets the session's cursor."""

    ack: int


# -- the rpc stream --------------------------------------------------------------------------------------


class Request(Message):
    """One call. Methods and their parameter types are listed in METHODS."""

    id: int
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


class Answer(Message):
    """The answer to the request with the same id: `result` or `error`. Answers may arrive in any order."""

    id: int
    result: msgspec.Raw = msgspec.Raw()  # not `Raw | None`: msgspec would decode it
    error: Error | None = None


class Limits(Fixed, frozen=True):
    """Times, in seconds, after which the agent ends an execution or the whole sandbox by itself."""

    timeout: float | None = 300.0  # maximum duration of one durable execution
    idle_timeout: float | None = 600.0  # without activity, then the sandbox ends; None: never
    max_lifetime: float = 86400.0


class BindRequest(Message):
    """Assign a warm sandbox to its user. This can be done once.

    `context_id` becomes the id of the default context (a Jupyter kernel id).
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
    """A context: a kernel of the sandbox. `state` is starting, idle, busy, restarting or dead."""

    id: str
    name: str
    language: str
    state: str
    cwd: str
    created_at: float
    last_activity: float
    connections: int = 0
    executions: int = 0
    head: int = 0  # the newest sequence number of its journal
    end: str | None = None  # why it is dead: oom, kernel_died


class ContextCreate(Message):
    """Parameters of contexts.create. The caller makes `id`: a repeated call creates one context only."""

    id: str
    language: str | None = None
    name: str = ""
    cwd: str | None = None
    env: dict[str, str] = {}


class ById(Message):
    """Parameters of methods that take the id of one context, execution or command."""

    id: str


class ExecutionInfo(Message):
    """One durable execution. `end` is None while it is queued or running.

    Its messages have the sequence numbers `first` to `last` in the context's journal. `principal` is who
    sent it, and its replies go to `session`.
    """

    id: str
    context: str
    session: str
    status: str  # queued, running, ended
    started_at: float
    completed_at: float | None = None
    end: str | None = None
    message: str | None = None  # the reason, if the agent and not the kernel ended it
    first: int | None = None
    last: int | None = None
    execution_count: int | None = None
    principal: str = ""


class FileInfo(Message):
    """A file or folder of the workspace; `path` is absolute inside the sandbox."""

    path: str
    size: int
    created_at: float
    modified_at: float
    is_directory: bool
    etag: str = ""
    mode: int = 0o644


class FilePath(Message):
    """Parameters of files.stat, files.mkdir and files.remove. `recursive` also removes a folder's content."""

    path: str
    recursive: bool = False


class FileList(Message):
    """Parameters of files.list: `depth` levels below `path`, at most `limit` entries."""

    path: str = "/workspace"
    depth: int = 1
    limit: int = 10_000


class FileMove(Message):
    """Parameters of files.move. With `overwrite` a file at `target` is replaced."""

    source: str
    target: str
    overwrite: bool = False


class FileEvent(Message):
    """A change of a file or folder. `event` is created, modified, deleted or moved."""

    event: str
    path: str


class CommandStart(Message):
    """Run `command` in a shell, or `argv` without one. The caller makes `id`; repeated calls start one."""

    id: str
    command: str | None = None
    argv: list[str] | None = None
    cwd: str | None = None
    env: dict[str, str] = {}
    timeout: float | None = None
    stdin: str | None = None
    stdin_encoding: str = "utf-8"  # or base64, for any bytes
    keep_stdin: bool = False  # keep standard input open, for commands.stdin


class CommandInfo(Message):
    """A command. `exit_code` is -N after signal N; `end`: ok, error, timeout, interrupted, oom, expired."""

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
    """A piece of a command's output. `stream` is stdout or stderr; bytes that are not UTF-8 are replaced."""

    seq: int
    stream: str
    text: str


class CommandSignal(Message):
    """Send a signal to a command's process group; `signal` is its name."""

    id: str
    signal: str = "SIGTERM"


class CommandStdin(Message):
    """Write `data` to a command's standard input; `eof` then closes it."""

    id: str
    data: str = ""
    encoding: str = "utf-8"  # or base64, for any bytes
    eof: bool = False


class PackagesInstall(Message):
    """Install packages with `manager` or the runtime's package manager, as a command with this id."""

    id: str
    packages: list[str]
    manager: str | None = None
    timeout: float | None = None
    gate: bool = False  # executions wait until this installation has ended


class Shutdown(Message):
    """End the sandbox. `end` is the reason: terminated, expired or oom."""

    end: str = "terminated"


class Ready(Message):
    """Parameters of `ready`, which answers when a kernel is parked or running, or after `timeout` seconds."""

    timeout: float = 60.0


class Usage(Fixed, frozen=True):
    """The resources that the sandbox's processes use now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    processes: int = 0


class Status(Message):
    """The state of a sandbox. `state` is starting, ready (a kernel is parked, not bound), bound or ending."""

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
    """A method without parameters, or without a result."""


# The methods of the rpc stream: the types of the parameters and of the result.
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
