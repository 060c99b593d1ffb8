"""The one protocol between the gateway and a place where sandboxes run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.tenants import DEFAULT_TENANT
from llmsafespace_protocol.frames import FrameStream
from llmsafespace_protocol.requests import BindRequest, Limits, Open

PUBLISHED = "published"  # in place of an owner: the pool's code was approved by an admin


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox may use: cores, bytes, bytes."""

    cpu: float = 0.5
    memory: int = 512 * 1024**2
    storage: int = 1024**3

    def fits(self, other: Resources) -> bool:
        """True when `self` is no more than `other` in every respect."""
        return self.cpu <= other.cpu and self.memory <= other.memory and self.storage <= other.storage


class EgressRule(msgspec.Struct, frozen=True):
    """One destination that a sandbox may reach through the egress proxy; no ports means 80 and 443."""

    domain: str
    ports: tuple[int, ...] = ()


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend must know to find or make a sandbox; whom it belongs to is in `owner` and `tenant`.

    `warm_pool` is the pool that the request names; without one, only pools that run nobody's code in the
    sandbox, or published ones, may serve it (see WarmPoolSpec).
    """

    sandbox_id: str
    runtime: str
    owner: str
    tenant: str
    security_level: str = "standard"
    resources: Resources = Resources()
    egress: tuple[EgressRule, ...] = ()
    use_warm_pool: bool = True
    warm_pool: str | None = None
    limits: Limits = Limits()
    env: dict[str, str] = {}  # looked at for what cannot be bound late (PYTHONHASHSEED, LD_*, …)


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a sandbox came to be; `reason` says why it was cold, `warnings` what differs from the request.

    `pool` is the warm pool that it is of, `pool_owner` whose that is: a user's id, or PUBLISHED.
    """

    kind: str  # warm, cold
    reason: str = ""
    pool: str | None = None
    pool_owner: str | None = None
    warnings: tuple[str, ...] = ()


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that is now this request's and nobody else's, not yet bound.

    `egress_token` is what bind has to bring where the egress proxy cannot know the sandbox otherwise.
    """

    sandbox_id: str
    runtime: str  # the runtime that serves, which may differ from the one asked for (see start.warnings)
    languages: tuple[str, ...]  # the first is the default kernel's
    start: Start
    isolation: dict[str, Any] = {}
    egress_token: str | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A living, claimed sandbox as the backend knows it."""

    sandbox_id: str
    runtime: str
    started_at: float
    isolation: dict[str, Any] = {}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox is no more. `end` says why: terminated, expired, timeout, oom, lost.

    timeout: an execution ran past its time limit and the agent did not end it, so the sandbox was ended from
    outside; lost: its process or node was killed.
    """

    sandbox_id: str
    end: str
    message: str = ""


class Stranger(msgspec.Struct, frozen=True, kw_only=True):
    """A living, bound sandbox that the store may not know, described as the gateway that made it would.

    It was made past the gateway (with kubectl), or the store has lost its row. `spec.owner` is what its maker
    wrote, a user's name or id, and surely an id when `owner_is_id`: that is kept although no user has it.
    `context_id` is its default kernel's.
    """

    spec: SandboxSpec
    claim: Claim
    context_id: str
    started_at: float
    language: str | None = None
    metadata: dict[str, str] = {}
    owner_is_id: bool = False


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox that could not be taken in as it was. `name` is the backend's own.

    `kept`: it lives and is served, without what `reason` names; otherwise it has been ended or left alone.
    """

    name: str
    reason: str
    since: float
    kept: bool = False
    sandbox_id: str | None = None
    tenant: str | None = None


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that this backend serves. `id` is as `python:3.11`."""

    id: str
    language: str
    version: str
    display_name: str
    languages: tuple[str, ...]
    packages: tuple[str, ...] = ()
    available: bool = True
    reason: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How sandboxes of a security level are isolated, in words."""

    name: str
    security_level: str
    description: str
    resource_defaults: Resources = Resources()
    measures: tuple[str, ...] = ()
    writable_paths: tuple[str, ...] = ()
    network: str = ""


class WarmPoolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of sandboxes that are started ahead.

    `tenant` is its owner's, and names are unique in a tenant; None is the operator's configuration, which
    serves all tenants. `owner` is the id of the user who made it. `published`: an admin approved its code,
    as who configures the gateway or may create WarmPool objects does by that alone.
    """

    name: str
    runtime: str
    min_size: int = 1
    max_size: int = 0  # 0: unlimited
    security_level: str = "standard"
    resources: Resources = Resources(cpu=1.0, memory=1024**3)
    preload_packages: tuple[str, ...] = ()
    preload_scripts: tuple[tuple[str, str], ...] = ()  # (name, content)
    ttl: int = 3600
    auto_scaling: bool = False
    target_utilization: int = 80
    scale_down_delay: int = 300
    tenant: str | None = None
    owner: str | None = None
    published: bool = False

    @property
    def key(self) -> str:
        """What tells it from all other pools: tenants' names have no `/`."""
        return f"{self.tenant or ''}/{self.name}"

    @property
    def has_code(self) -> bool:
        """Whether somebody's code, or a package of somebody's choice, runs in its sandboxes."""
        return bool(self.preload_packages or self.preload_scripts)

    @property
    def trusted(self) -> bool:
        """Whether requests that do not ask for it may get its code: an admin, or the operator, says so."""
        return self.published or self.tenant is None

    @property
    def said_owner(self) -> str | None:
        """Whose it is, for the answer to a request: a user's id, or PUBLISHED."""
        return PUBLISHED if self.trusted else self.owner

    def serves(self, tenant: str) -> bool:
        """Whether users of this tenant may see it and ask for it."""
        return self.tenant in (None, tenant) or (self.published and self.tenant == DEFAULT_TENANT)


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A condition in the Kubernetes manner. `status` is "True", "False" or "Unknown"."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: float = 0.0


class WarmPoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a pool stands: warm and unclaimed, claimed and living, on their way."""

    available: int = 0
    assigned: int = 0
    pending: int = 0
    last_scale_time: float | None = None
    conditions: tuple[Condition, ...] = ()


class RuntimeUnavailable(ApiError):
    """No runtime serves the request; the message names those that do."""

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__("runtime_unavailable", message, details)


class SandboxBackend(Protocol):
    """Where sandboxes run. Every method may be called concurrently.

    `shared`: other gateway processes see the same sandboxes, and others than gateways may make some.
    `extends`: a sandbox's longest life can become longer than it was when it began.
    """

    name: str
    shared: bool
    extends: bool

    async def start(self) -> None:
        """Find living sandboxes, sweep what is left of the dead, begin to fill pools. Serves on return."""

    async def stop(self) -> None:
        """Let go: unclaimed warm sandboxes end, claimed ones stay."""

    async def claim(self, spec: SandboxSpec) -> Claim:
        """Take a warm sandbox, or start a cold one, for `spec.sandbox_id`; the same id again gets the same.

        A request without `warm_pool` gets code of a trusted pool only. One with it gets that pool's: raises
        ApiError(not_found) when there is none that serves the tenant, ApiError(invalid_request) when the
        pool has another runtime or security level, or less resources; is the pool empty, the start is cold.
        Raises RuntimeUnavailable, or ApiError(service_unavailable) when there is no room.
        """

    async def record(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """Make the claim durable where the backend keeps its own record; runs beside the bind."""

    async def set_lifetime(self, sandbox_id: str, seconds: float) -> None:
        """The sandbox ends at the latest `seconds` from now, also when its agent does not end it.

        The agent keeps this limit as well and is to be first; the backend adds a margin for that. A sandbox
        that has just ended is passed over.
        """

    async def stored(self, claim: Claim, spec: SandboxSpec, bind: BindRequest) -> None:
        """The store has a row of it: from now on `strangers` has it, in case that the store is lost."""

    async def hold_end(self, sandbox_id: str) -> None:
        """The store cannot take this end now: it is kept until `noted`, and told again after a restart."""

    async def noted(self, sandbox_id: str) -> None:
        """The store knows how a sandbox ended."""

    async def dial(self, sandbox_id: str, open_: Open) -> FrameStream:
        """A proved stream to the agent, opened for `open_` (its `Opened` answer is still to be read).

        Raises ApiError(not_found) when there is no such living sandbox,
        ApiError(service_unavailable) when it cannot be reached.
        """

    async def find(self, sandbox_id: str) -> Place | None:
        """The living, claimed sandbox of this id."""

    async def living(self) -> list[Place]:
        """All living, claimed sandboxes that a gateway made."""

    async def strangers(self) -> list[Stranger]:
        """All living, bound sandboxes that can be adopted when the store has no row of them."""

    async def quarantined(self) -> list[Quarantined]:
        """Sandboxes that could not be taken in as they were, since the start of this process."""

    async def fate(self, sandbox_id: str) -> Ended | None:
        """How a sandbox ended (`lost` when nothing is known of it), None while it lives."""

    async def destroy(self, sandbox_id: str, end: str = "terminated") -> bool:
        """End a sandbox and remove everything of it; False when there was none. Returns when it is gone."""

    def watch(self) -> AsyncIterator[Ended | Stranger]:
        """Every end of a claimed sandbox and every stranger from now on, what nobody has seen yet first.

        An end counts as seen when the next one is asked for, unless `hold_end` was called for it.
        """

    async def runtimes(self) -> list[Runtime]:
        """What this backend can serve."""

    async def profiles(self) -> list[Profile]:
        """What the security levels mean here."""

    async def pools(self, tenant: str | None = None) -> list[WarmPoolSpec] | None:
        """The pools that serve a tenant (None: all), None where the backend keeps no account of them.

        A pool of more than one tenant has no tenant, unless it was published in DEFAULT_TENANT.
        """

    def capacity(self) -> Resources | None:
        """What there is for sandboxes at all; None where that is not known or can grow."""

    async def apply_pool(self, pool: WarmPoolSpec) -> None:
        """Create or change a warm pool. Raises RuntimeUnavailable."""

    async def delete_pool(self, pool: WarmPoolSpec) -> None:
        """Remove a pool (by its tenant and name); its unclaimed sandboxes end, claimed ones live on."""

    async def pool_status(self, pool: WarmPoolSpec) -> WarmPoolStatus:
        """How a pool (by its tenant and name) stands now. Raises ApiError(not_found)."""
