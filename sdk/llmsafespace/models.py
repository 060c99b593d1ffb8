"""The gateway's answers about sandboxes, files, contexts and commands, as plain objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Start:
    """How a sandbox started: `kind` is "warm" or "cold", `reason` says why it was cold.

    `pool` is the warm pool it came from. `pool_owner` is the id of the pool's owner, or "published" for a
    pool that an admin or the gateway's operator published.
    """

    kind: str
    reason: str = ""
    pool: str | None = None
    pool_owner: str | None = None


@dataclass(frozen=True)
class SandboxStatus:
    """The state of a sandbox: creating, running or ended; `uptime` in seconds.

    `resources` is the current use beside the limits; `isolation` lists what is really enforced.
    """

    state: str
    resources: dict[str, Any]
    uptime: float
    isolation: dict[str, Any]
    end: str | None = None
    expires_at: datetime | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SandboxInfo:
    """A sandbox as lists show it. `Sandbox.connect(info.id)` makes it usable."""

    id: str
    runtime: str
    state: str
    created_at: datetime
    start: Start
    kernel_id: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    timeout: float | None = None
    end: str | None = None
    expires_at: datetime | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class FileInfo:
    """A file or folder; `path` is absolute inside the sandbox, `size` in bytes."""

    path: str
    size: int
    created_at: datetime
    modified_at: datetime
    is_directory: bool
    etag: str = ""


@dataclass(frozen=True)
class FileEvent:
    """Something changed: `event` is created, modified, deleted or moved."""

    event: str
    path: str


@dataclass(frozen=True)
class Context:
    """A kernel of the sandbox. `state` is starting, idle, busy, restarting or dead."""

    id: str
    name: str
    language: str
    state: str
    cwd: str
    created_at: datetime
    is_default: bool = False


@dataclass(frozen=True)
class CommandResult:
    """The outcome of a command. `exit_code` is -N after signal N; `end` is ok, error, timeout, …"""

    stdout: str
    stderr: str
    exit_code: int
    end: str = "ok"
    execution_time: float = 0.0
    id: str = ""

    @property
    def success(self) -> bool:
        """True when the command ended with exit code 0."""
        return self.exit_code == 0

    def __str__(self) -> str:
        return self.stdout + self.stderr


def moment(text: str | None) -> datetime | None:
    """The time in an RFC 3339 text; None for None."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def sandbox_info(document: Mapping[str, Any]) -> SandboxInfo:
    """From the gateway's description of a sandbox."""
    start = document.get("start") or {}
    return SandboxInfo(
        id=document["id"],
        runtime=document["runtime"],
        state=document["status"],
        created_at=_moment(document["createdAt"]),
        start=Start(
            start.get("kind", "cold"), start.get("reason", ""), start.get("pool"), start.get("poolOwner")
        ),
        kernel_id=document.get("kernelId"),
        metadata=dict(document.get("metadata") or {}),
        warnings=list(document.get("warnings") or []),
        timeout=document.get("timeout"),
        end=document.get("end"),
        expires_at=moment(document.get("expiresAt")),
        raw=dict(document),
    )


def sandbox_status(document: Mapping[str, Any]) -> SandboxStatus:
    """From the gateway's account of a sandbox's state."""
    return SandboxStatus(
        state=document["status"],
        resources=dict(document.get("resources") or {}),
        uptime=float(document.get("uptime", 0.0)),
        isolation=dict(document.get("isolation") or {}),
        end=document.get("end"),
        expires_at=moment(document.get("expiresAt")),
        problems=list(document.get("problems") or []),
    )


def file_info(document: Mapping[str, Any]) -> FileInfo:
    """From the gateway's description of a file."""
    return FileInfo(
        path=document["path"],
        size=document["size"],
        created_at=_moment(document["createdAt"]),
        modified_at=_moment(document["modifiedAt"]),
        is_directory=document["isDirectory"],
        etag=document.get("etag", ""),
    )


def context(document: Mapping[str, Any]) -> Context:
    """From the gateway's description of a context."""
    return Context(
        id=document["id"],
        name=document.get("name", ""),
        language=document["language"],
        state=document["state"],
        cwd=document.get("cwd", ""),
        created_at=_moment(document["createdAt"]),
        is_default=bool(document.get("isDefault", False)),
    )
