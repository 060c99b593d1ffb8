"""Bodies of runtimes, profiles, warm pools, users, keys, grants and the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from llmsafespace_gateway.rest.types import (
    Answer,
    Body,
    Identifier,
    Name,
    ResourcesAnswer,
    ResourcesBody,
    Role,
    SecurityLevel,
)
from llmsafespace_protocol import limits

# -- runtimes, profiles ------------------------------------------------------------------------------


class RuntimeAnswer(Answer, kw_only=True):
    """A runtime that sandboxes can have; `reason` says why one is not available."""

    id: str
    language: str
    version: str
    display_name: str
    languages: list[str]
    pre_installed_packages: list[str] = []
    available: bool = True
    reason: str = ""


class RuntimeList(Answer, kw_only=True):
    """The runtimes of this gateway."""

    items: list[RuntimeAnswer]
    next: str | None = None


class ProfileAnswer(Answer, kw_only=True):
    """What a security level means on this gateway."""

    id: str
    security_level: str
    description: str
    resource_defaults: ResourcesAnswer
    measures: list[str] = []
    writable_paths: list[str] = []
    network: str = ""


class ProfileList(Answer, kw_only=True):
    """The built-in security profiles."""

    items: list[ProfileAnswer]
    next: str | None = None


# -- warm pools --------------------------------------------------------------------------------------


class PreloadScript(Body, kw_only=True):
    """Python that runs once in each warm sandbox, before anybody's code."""

    name: Name
    content: Annotated[str, Meta(max_length=limits.MAX_PRELOAD_SCRIPT)]


class AutoScaling(Body, kw_only=True):
    """Grow the pool, within maxSize, when more than `targetUtilization` percent of it is taken."""

    enabled: bool = False
    target_utilization: Annotated[int, Meta(ge=1, le=100)] = 80
    scale_down_delay: Annotated[int, Meta(ge=0, le=limits.MAX_SCALE_DOWN_DELAY)] = 300


PoolSize = Annotated[int, Meta(ge=0, le=limits.MAX_POOL_SIZE)]
PoolTtl = Annotated[int, Meta(ge=0, le=limits.MAX_DURATION)]
PoolPackages = Annotated[list[Name], Meta(max_length=limits.MAX_PRELOAD_PACKAGES)]
PoolScripts = Annotated[list[PreloadScript], Meta(max_length=limits.MAX_PRELOAD_SCRIPTS)]
PoolName = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$(?!\n)")]


class WarmPoolCreate(Body, kw_only=True):
    """A pool of sandboxes started ahead. `maxSize` 0 is unlimited.

    What it preloads is for sandboxes that name the pool (`warmPool`). A `published` one serves others of
    the tenant too, and of every tenant where an admin of tenant `default` publishes it: only admins do.
    """

    name: PoolName
    runtime: Name
    min_size: PoolSize = 1
    max_size: PoolSize = 0
    security_level: SecurityLevel = "standard"
    ttl: PoolTtl = 3600
    resources: ResourcesBody | None = None
    preload_packages: PoolPackages = []
    preload_scripts: PoolScripts = []
    auto_scaling: AutoScaling | None = None
    published: bool = False


class WarmPoolPatch(Body, kw_only=True):
    """What may change of a pool; a field that is absent stays."""

    min_size: PoolSize | UnsetType = UNSET
    max_size: PoolSize | UnsetType = UNSET
    ttl: PoolTtl | UnsetType = UNSET
    preload_packages: PoolPackages | UnsetType = UNSET
    preload_scripts: PoolScripts | UnsetType = UNSET
    auto_scaling: AutoScaling | UnsetType = UNSET
    published: bool | UnsetType = UNSET


class ConditionAnswer(Answer, kw_only=True):
    """A condition in the Kubernetes manner; `status` is True, False or Unknown, as text."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: datetime | None = None


class WarmPoolStatusAnswer(Answer, kw_only=True):
    """How a pool stands: warm and unclaimed, claimed and living, on their way."""

    available_pods: int
    assigned_pods: int
    pending_pods: int
    last_scale_time: datetime | None = None
    conditions: list[ConditionAnswer] = []


class WarmPoolAnswer(Answer, kw_only=True):
    """A warm pool and how it stands."""

    name: str
    runtime: str
    min_size: int
    max_size: int
    security_level: str
    ttl: int
    resources: ResourcesAnswer
    preload_packages: list[str] = []
    preload_scripts: list[PreloadScript] = []
    auto_scaling: AutoScaling
    tenant: str | None = None
    owner: str | None = None
    published: bool = False
    status: WarmPoolStatusAnswer


class WarmPoolList(Answer, kw_only=True):
    """The warm pools that serve the caller."""

    items: list[WarmPoolAnswer]
    next: str | None = None


# -- people ------------------------------------------------------------------------------------------


class UserAnswer(Answer, kw_only=True):
    """A user."""

    id: str
    name: str
    tenant: str
    role: str
    created_at: datetime | None = None


class MeAnswer(Answer, kw_only=True):
    """Who the caller is, what its key may do, and what its tenant has now (sandboxes, cores, bytes)."""

    id: str
    name: str
    tenant: str
    role: str
    key_id: str
    scopes: list[str]
    usage: dict[str, float] = {}


class UserList(Answer, kw_only=True):
    """Users."""

    items: list[UserAnswer]
    next: str | None = None


class UserCreate(Body, kw_only=True):
    """A new user."""

    name: Name
    role: Role = "developer"
    tenant: Name | None = None


class UserPatch(Body, kw_only=True):
    """What may change of a user; its keys follow the new role."""

    role: Role


class ApiKeyCreate(Body, kw_only=True):
    """A new key of the caller; its scopes are at most the caller's own. `expiresIn` is seconds."""

    name: Annotated[str, Meta(max_length=128)] = ""
    scopes: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=32)] | None = None
    expires_in: Annotated[float, Meta(ge=1, le=10 * 366 * 86400)] | None = None


class ApiKeyAnswer(Answer, kw_only=True):
    """A key, without its secret."""

    id: str
    name: str
    user_id: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class ApiKeyCreated(ApiKeyAnswer, kw_only=True):
    """A new key; `key` is shown this once."""

    key: str


class ApiKeyList(Answer, kw_only=True):
    """Keys, newest first."""

    items: list[ApiKeyAnswer]
    next: str | None = None


class GrantCreate(Body, kw_only=True):
    """Let another user of the tenant use a sandbox."""

    sandbox_id: Identifier
    user_id: Identifier
    level: Literal["viewer", "developer"] = "viewer"


class GrantAnswer(Answer, kw_only=True):
    """A user's right to somebody else's sandbox."""

    id: str
    sandbox_id: str
    user_id: str
    level: str


class GrantList(Answer, kw_only=True):
    """Grants."""

    items: list[GrantAnswer]
    next: str | None = None


class AuditEntry(Answer, kw_only=True):
    """A decision that changed something, or was refused."""

    id: str
    at: datetime
    user_id: str | None = None
    tenant: str | None = None
    key_id: str | None = None
    action: str
    target: str
    outcome: str
    details: dict[str, Any] = {}


class AuditList(Answer, kw_only=True):
    """The audit log, newest first."""

    items: list[AuditEntry]
    next: str | None = None


# -- the gateway itself -------------------------------------------------------------------------------


class QuarantinedAnswer(Answer, kw_only=True):
    """A sandbox that could not be taken in as it was when the gateway started.

    `kept`: it lives and is served, without what `reason` names. Otherwise it has been ended as `lost` (its
    records are in the data dir's `quarantine` folder), or is no sandbox at all.
    """

    name: str
    sandbox_id: str | None
    reason: str
    since: datetime
    kept: bool


class SystemAnswer(Answer, kw_only=True):
    """This gateway process. `unwrittenEnds`: ends of sandboxes that the database could not take yet.

    `problems`: why `/readyz` answers 503, by part (draining, disk, database, backend).
    """

    version: str
    backend: str
    quarantined: list[QuarantinedAnswer]
    unwritten_ends: int
    problems: dict[str, str]
