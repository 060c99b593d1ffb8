"""What the store holds, one Struct per table. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Rows are values: a change is a new row."""


class TenantRow(Row, frozen=True, kw_only=True):
    """A tenant; `quota` (sandboxes, cpu, memory in bytes, user) overrides the default, key by key."""

    id: str
    name: str
    quota: dict[str, Any] = {}


class UserRow(Row, frozen=True, kw_only=True):
    """A user of one tenant. `role` is admin, developer or viewer."""

    id: str
    name: str
    tenant: str
    role: str
    created_at: float


class KeyRow(Row, frozen=True, kw_only=True):
    """An API key; only a hash of its secret is kept."""

    id: str
    user_id: str
    name: str
    hash: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


class SandboxRow(Row, frozen=True, kw_only=True):
    """A sandbox, living or ended. `state` is creating, running or ended; `owner` is a user's id.

    `end` is terminated, expired, timeout, oom, lost or failed. `setup_command` is the agent's command that
    installs the packages which were asked for.
    """

    id: str
    tenant: str
    owner: str
    backend: str
    runtime: str
    requested_runtime: str
    security_level: str
    state: str
    start_kind: str
    start_reason: str = ""
    start_pool: str | None = None
    start_pool_owner: str | None = None
    warnings: tuple[str, ...] = ()
    created_at: float
    ended_at: float | None = None
    end: str | None = None
    end_message: str | None = None
    cpu: float
    memory: int
    storage: int
    timeout: float | None = None
    idle_timeout: float | None = None
    max_lifetime: float
    metadata: dict[str, str] = {}
    isolation: dict[str, Any] = {}
    egress: list[dict[str, Any]] = []
    idempotency_key: str | None = None
    request_digest: str | None = None
    setup_command: str | None = None


class KernelRow(Row, frozen=True, kw_only=True):
    """A context of a sandbox; its id is the Jupyter kernel id."""

    id: str
    sandbox_id: str
    name: str
    language: str
    created_at: float
    last_activity: float
    execution_state: str
    connections: int = 0
    is_default: bool = False
    path: str = ""


class SessionRow(Row, frozen=True, kw_only=True):
    """A Jupyter session: a document and its kernel."""

    id: str
    kernel_id: str
    owner: str
    tenant: str
    path: str
    name: str
    type: str


class GrantRow(Row, frozen=True, kw_only=True):
    """A user may use somebody else's sandbox; `level` is viewer or developer."""

    id: str
    sandbox_id: str
    user_id: str
    level: str


class PoolRow(Row, frozen=True, kw_only=True):
    """A warm pool; an empty `tenant` is the operator's configuration, which serves all tenants."""

    name: str
    tenant: str = ""
    owner: str | None = None
    published: bool = False
    spec: dict[str, Any] = {}


class AuditRow(Row, frozen=True, kw_only=True):
    """A decision that changed something, or that refused to. Ids grow with time.

    `execution` is the mark of the execution that was accepted (see access.executions.key_of).
    """

    id: str
    at: float
    user_id: str | None = None
    tenant: str | None = None
    key_id: str | None = None
    action: str
    target: str
    outcome: str
    details: dict[str, Any] = {}
    execution: str | None = None
