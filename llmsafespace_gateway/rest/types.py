"""The request and response bodies of `/api/v1`: validation, OpenAPI and documentation come from these.

Camel case on the wire. Times are RFC 3339, durations seconds, sizes bytes. A list is `{items, next}`:
`next`, where not null, is the `after` query value of the next page.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmsafespace_gateway.services.types import EventUnion
from llmsafespace_protocol import limits

Identifier = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$(?!\n)", description="up to 128 of A-Z a-z 0-9 . _ : -"
    ),
]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Timeout = Annotated[float, Meta(ge=0.1, le=limits.MAX_DURATION, description="seconds")]
Lifetime = Annotated[float, Meta(ge=1, le=limits.MAX_DURATION, description="seconds")]
Encoding = Literal["utf-8", "base64"]  # text as it is, or any bytes
Text = Annotated[str, Meta(max_length=8 * 1024 * 1024)]
Path = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
EnvName = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^=\x00]+$")]
EnvValue = Annotated[str, Meta(max_length=128 * 1024, pattern=r"^[^\x00]*$")]
Env = Annotated[dict[EnvName, EnvValue], Meta(max_length=512, description="environment variables, as data")]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=128)], Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)
]
Quantity = Annotated[
    str | float, Meta(description='a Kubernetes quantity: "500m" or 0.5 cores; "1Gi" or a number of bytes')
]
SecurityLevel = Literal["standard", "high", "custom"]
Role = Literal["admin", "developer", "viewer"]
End = Literal["ok", "error", "aborted", "timeout", "interrupted", "oom", "kernel_died", "expired"]


class Body(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A request body: a field that is not known is an error, so that a misspelt one is not ignored."""


class Answer(msgspec.Struct, rename="camel", kw_only=True):
    """A response body."""


# -- errors ------------------------------------------------------------------------------------------


class ErrorBody(Answer, kw_only=True):
    """What was wrong, where, and what to do."""

    code: str
    message: str
    details: dict[str, Any] = {}


class ErrorAnswer(Answer, kw_only=True):
    """The body of every answer with a status of 400 or more."""

    error: ErrorBody


# -- sandboxes ---------------------------------------------------------------------------------------


class ResourcesBody(Body, kw_only=True):
    """Limits of a sandbox, as Kubernetes quantities."""

    cpu: Quantity | None = None
    memory: Quantity | None = None
    ephemeral_storage: Quantity | None = None


class EgressRuleBody(Body, kw_only=True):
    """A destination that the sandbox may reach; `*.example.org` matches subdomains."""

    domain: Annotated[str, Meta(min_length=1, max_length=limits.MAX_DOMAIN)]
    ports: Annotated[
        list[Annotated[int, Meta(ge=1, le=65535)] | PortBody], Meta(max_length=limits.MAX_EGRESS_PORTS)
    ] = []


class PortBody(Body, kw_only=True):
    """A port in the custom resource's manner."""

    port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Literal["TCP"] = "TCP"


class NetworkAccessBody(Body, kw_only=True):
    """What the sandbox may reach. Nothing may reach the sandbox: `ingress` true is refused."""

    egress: Annotated[list[EgressRuleBody], Meta(max_length=limits.MAX_EGRESS_RULES)] = []
    ingress: bool = False


class FileContent(Body, kw_only=True):
    """A file's content as text, or base64 for any bytes."""

    content: str
    encoding: Encoding = "utf-8"


class SandboxCreate(Body, kw_only=True):
    """A new sandbox. Header `Idempotency-Key` makes a repeated request one sandbox."""

    runtime: (
        Annotated[
            Name,
            Meta(
                description="as python:3.12; default: that of the warm pool named, or the gateway's own",
            ),
        ]
        | None
    ) = None
    security_level: SecurityLevel = "standard"
    timeout: Timeout | None = 300.0
    resources: ResourcesBody | None = None
    network_access: NetworkAccessBody | None = None
    use_warm_pool: bool = True
    warm_pool: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=limits.MAX_NAME,
                description="the warm pool to take it from, with what that preloads; without it only pools "
                "that preload nothing serve, and published ones",
            ),
        ]
        | None
    ) = None
    env: Env = {}
    files: Annotated[dict[Path, str | FileContent], Meta(max_length=1024)] = {}
    packages: Annotated[list[Name], Meta(max_length=200)] = []
    cwd: Path | None = None
    timezone: Annotated[str, Meta(max_length=64)] | None = None
    language: Name | None = None
    metadata: Metadata = {}
    idle_timeout: Lifetime | None = 600.0
    max_lifetime: Lifetime | None = None


class SandboxPatch(Body, kw_only=True):
    """What may change while a sandbox lives. A field that is absent stays; `metadata` is replaced whole."""

    metadata: Metadata | UnsetType = UNSET
    timeout: Timeout | UnsetType | None = UNSET
    idle_timeout: Lifetime | UnsetType | None = UNSET
    max_lifetime: Lifetime | UnsetType = UNSET


class ResourcesAnswer(Answer, kw_only=True):
    """Limits of a sandbox, as Kubernetes quantities."""

    cpu: str
    memory: str
    ephemeral_storage: str


class EgressRuleAnswer(Answer, kw_only=True):
    """A destination that the sandbox may reach; no ports means 80 and 443."""

    domain: str
    ports: list[int] = []


class NetworkAccessAnswer(Answer, kw_only=True):
    """What the sandbox may reach."""

    egress: list[EgressRuleAnswer] = []
    ingress: bool = False


class Endpoints(Answer, kw_only=True):
    """Where to reach a sandbox: paths on this gateway."""

    execute: str
    files: str
    websocket: str
    kernel: str | None


class StartAnswer(Answer, kw_only=True):
    """How the sandbox came to be; `reason` says why it was cold.

    `pool` is the warm pool that it is of, `poolOwner` the id of the user whose pool that is, or `published`
    where an admin or the gateway's operator stands for it.
    """

    kind: str
    reason: str = ""
    pool: str | None = None
    pool_owner: str | None = None


class SandboxAnswer(Answer, kw_only=True):
    """A sandbox. `runtime` is the one that serves; `warnings` say what differs from the request.

    `setupCommand` is the command that installs `packages`; executions wait for it.
    """

    id: str
    runtime: str
    requested_runtime: str
    status: Literal["creating", "running", "ended"]
    security_level: str
    created_at: datetime
    ended_at: datetime | None = None
    end: str | None = None
    end_message: str | None = None
    start: StartAnswer
    warnings: list[str] = []
    resources: ResourcesAnswer
    network_access: NetworkAccessAnswer
    timeout: float | None
    idle_timeout: float | None
    max_lifetime: float
    expires_at: datetime | None = None
    metadata: dict[str, str] = {}
    owner: str
    tenant: str
    kernel_id: str | None = None
    setup_command: str | None = None
    isolation: dict[str, Any] = {}
    endpoints: Endpoints


class ProgressAnswer(Answer, kw_only=True):
    """What a sandbox that is being made waits for: a CamelCase word, and a sentence for people."""

    reason: str
    message: str


class CreateEvent(Answer, kw_only=True, omit_defaults=True):
    """One line of the `application/x-ndjson` answer of a create: some `progress`, then one of the others."""

    progress: ProgressAnswer | None = None
    sandbox: SandboxAnswer | None = None
    error: ErrorBody | None = None


class SandboxList(Answer, kw_only=True):
    """The caller's sandboxes, newest first."""

    items: list[SandboxAnswer]
    next: str | None = None


class UsageAnswer(Answer, kw_only=True):
    """What the sandbox's processes use now, beside its limits."""

    cpu_seconds: float
    memory_bytes: int
    disk_bytes: int
    processes: int
    limits: ResourcesAnswer


class ContextAnswer(Answer, kw_only=True):
    """A kernel of the sandbox. `state` is starting, idle, busy, restarting or dead."""

    id: str
    name: str
    language: str
    state: str
    cwd: str
    created_at: datetime
    last_activity: datetime
    connections: int = 0
    executions: int = 0
    end: str | None = None
    is_default: bool = False


class SandboxStatusAnswer(Answer, kw_only=True):
    """A sandbox as its agent sees it now; for an ended one, how it ended."""

    id: str
    status: Literal["creating", "running", "ended"]
    started_at: datetime
    uptime: float
    last_activity: datetime | None = None
    expires_at: datetime | None = None
    end: str | None = None
    end_message: str | None = None
    resources: UsageAnswer
    contexts: list[ContextAnswer] = []
    connections: int = 0
    isolation: dict[str, Any] = {}
    problems: list[str] = []


# -- executions --------------------------------------------------------------------------------------


class ExecuteBody(Body, kw_only=True):
    """Run code in a context, or a shell command.

    A client-made `executionId` makes a repeated request one run: it answers with the run that was.
    """

    type: Literal["code", "command"] = "code"
    content: Text
    language: Name | None = None
    context: Identifier | None = None
    execution_id: Identifier | None = None
    timeout: Timeout | None = None
    env: Env = {}
    stdin: Text | None = None
    stdin_encoding: Encoding = "utf-8"
    cwd: Path | None = None


class ResultAnswer(Answer, kw_only=True, gc=False):
    """One rich output: a MIME bundle. `isMainResult` marks the value of the cell's last expression."""

    data: dict[str, Any]
    metadata: dict[str, Any] = {}
    is_main_result: bool = False
    display_id: str | None = None


class ExecutionErrorAnswer(Answer, kw_only=True):
    """The exception that ended the execution."""

    name: str
    value: str
    traceback: list[str] = []


class ExecutionAnswer(Answer, kw_only=True):
    """An execution and everything it put out. `end` null means that it is queued or running.

    `exitCode` is 0 for ok and 1 for other ends of code; a command's own, -N after signal N.
    `truncated` true: output beyond 20 MiB of JSON is left out here; the events endpoint has all of it.
    `missed` counts messages that the journal had already dropped.
    """

    execution_id: str
    type: Literal["code", "command"] = "code"
    status: Literal["queued", "running", "completed", "failed"]
    started_at: datetime
    completed_at: datetime | None = None
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    results: list[ResultAnswer] = []
    end: End | None = None
    message: str | None = None
    error: ExecutionErrorAnswer | None = None
    execution_count: int | None = None
    context: str | None = None
    truncated: bool = False
    missed: int = 0


class ExecutionSummary(Answer, kw_only=True):
    """An execution without its output."""

    execution_id: str
    type: Literal["code", "command"] = "code"
    status: Literal["queued", "running", "completed", "failed"]
    started_at: datetime
    completed_at: datetime | None = None
    end: End | None = None
    message: str | None = None
    exit_code: int | None = None
    execution_count: int | None = None
    context: str | None = None


class ExecutionList(Answer, kw_only=True):
    """The executions that the sandbox still knows, newest first."""

    items: list[ExecutionSummary]
    next: str | None = None


class EventAnswer(Answer, kw_only=True):
    """One line of `application/x-ndjson` (or one `data:` of `text/event-stream`) is one such `event`."""

    event: EventUnion


# -- files -------------------------------------------------------------------------------------------


class FileAnswer(Answer, kw_only=True):
    """A file or folder; `path` is absolute inside the sandbox."""

    path: str
    size: int
    created_at: datetime
    modified_at: datetime
    is_directory: bool
    etag: str = ""
    mode: int = 0o644


class FileListAnswer(Answer, kw_only=True):
    """Entries beneath a folder, by path. `truncated`: there are more than were asked for."""

    items: list[FileAnswer]
    next: str | None = None
    truncated: bool = False


class FileMoveBody(Body, kw_only=True):
    """Move a file or folder to `target`; `overwrite` replaces a file there."""

    target: Path
    overwrite: bool = False
