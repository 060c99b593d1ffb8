"""The gateway's access control: what every handler asks before it does anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from llmsafespace_gateway.access import accounts
from llmsafespace_gateway.access.audit import FORGET_PAUSE, AuditLog, Retention
from llmsafespace_gateway.access.audit_events import AuditEvents
from llmsafespace_gateway.access.authentication import Authenticator
from llmsafespace_gateway.access.decisions import GRANT_LEVELS, decide, sandbox_level
from llmsafespace_gateway.access.egress_log import EgressLog
from llmsafespace_gateway.access.executions import ExecutionLog
from llmsafespace_gateway.access.principal import SANDBOXES_READ, Principal
from llmsafespace_gateway.access.quotas import (
    HasOwner,
    HasPool,
    HasResources,
    Quota,
    Quotas,
    Reservation,
    merge_quota,
)
from llmsafespace_gateway.access.rates import RateLimits
from llmsafespace_gateway.access.refusals import Refusals
from llmsafespace_gateway.access.watches import GrantWatches
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, grants, kernels, sandboxes, sessions, users
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow, SessionRow, UserRow

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between looks at what other processes revoked


class Access:
    """Identity, rights, quotas, rate limits and audit of one gateway process.

    `rate` and `burst` limit each key's requests; `quota` (see Quota) is the default of every tenant. The
    audit log keeps `audit_entries` for `audit_days` (see Retention). With `anonymous` a request without a
    key is that principal: only for a private unix socket.
    """

    def __init__(
        self,
        store: Store,
        *,
        rate: float = 100.0,
        burst: int = 400,
        quota: Mapping[str, Any] | None = None,
        anonymous: Principal | None = None,
        audit_days: float = 90.0,
        audit_entries: int = 1_000_000,
    ) -> None:
        self._store = store
        self._audit = AuditLog(store)
        self._authenticator = Authenticator(store)
        self._limits = RateLimits(rate, burst)
        self._refusals = Refusals(self.audit)
        self.executions = ExecutionLog(self._limits, self._audit, self.refused, anonymous)
        self._quotas = Quotas(_default_quota(quota or {}))
        self._grant_watches = GrantWatches(store)
        self._anonymous = anonymous
        self._egress = EgressLog(self._audit.add_for)
        self._retention = Retention(store, audit_days * 86400, audit_entries)
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Count the living sandboxes, then follow revocations in the background."""
        if self._anonymous is not None:
            await self._ensure_anonymous(self._anonymous)
        for tenant in await users.tenants(self._store):
            self._quotas.set_quota(tenant.id, tenant.quota)
        for row in await sandboxes.holdings(self._store):
            self._quotas.rebuild(row)
        self._audit.start()
        self._background = [asyncio.create_task(self._poll()), asyncio.create_task(self._forget())]

    async def stop(self) -> None:
        """Write down what is still in memory (audit, last uses)."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._egress.flush()
        self._refusals.flush()
        for flush in (self._authenticator.flush, self._audit.stop):
            try:
                await flush()
            except SQLAlchemyError:
                log.exception("what was still in memory could not be written")

    async def first_run(self, given: str | None = None) -> str | None:
        """See accounts.first_run; where no key is needed none is made, since nobody would see it."""
        return None if self._anonymous is not None else await accounts.first_run(self._store, given)

    # -- who ------------------------------------------------------------------------------------------

    async def authenticate(
        self, authorization: str | None, query_token: str | None = None, remote: str = ""
    ) -> Principal:
        """The principal of an Authorization header, or of a websocket upgrade's `?token=`.

        `remote` is the client's address, for the limit on bad keys.
        Raises ApiError: unauthorized, rate_limited for an address that presents many bad keys, or
        service_unavailable when the store does not answer.
        """
        if self._anonymous is not None and not authorization and not query_token:
            return self._anonymous
        try:
            found = await self._authenticator.principal(authorization, query_token)
        except ApiError as error:
            if error.code == "unauthorized":
                self._limits.failure(remote)
            raise
        except SQLAlchemyError as error:
            raise ApiError(
                "service_unavailable", "keys cannot be checked now; try again", None, 1.0
            ) from error
        self._quotas.set_quota(found.principal.tenant, found.quota)
        return found.principal

    def on_revoked(self, key_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` once, within a second of the key's revocation or expiry, in whatever process.

        Returns how to unsubscribe. A key that is revoked already calls back at once.
        """
        return self._authenticator.on_revoked(key_id, callback)

    def watch(
        self, principal: Principal, row: SandboxRow, level: str | None, callback: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `callback` when `principal` loses the `level` at which it has a sandbox open.

        That is on_revoked, a change of the key's role or scopes, the end of its user, and for a guest the end
        or change of the grant: within a second, in whatever process. It may be called once for each. Returns
        how to unsubscribe.
        """
        undo = [self._authenticator.on_revoked(principal.key_id, callback, principal)]
        if level in GRANT_LEVELS:
            undo.append(self._grant_watches.add(row.id, principal.user_id, level, callback))

        def unsubscribe() -> None:
            for step in undo:
                step()

        return unsubscribe

    def key_revoked(self, key_id: str) -> None:
        """A key was revoked: close what it has open."""
        self._authenticator.revoked([key_id])

    def user_changed(self, user_id: str) -> None:
        """A user's role changed: close what its keys have open."""
        self._authenticator.forget_user(user_id)

    # -- may they -------------------------------------------------------------------------------------

    def require(self, principal: Principal, scope: str) -> None:
        """Raise ApiError(forbidden) when the principal's key has not this scope."""
        if scope not in principal.scopes:
            raise ApiError("forbidden", f"this key lacks the scope {scope}", {"scope": scope})

    async def sandbox(self, principal: Principal, sandbox_id: str, scope: str) -> SandboxRow:
        """A sandbox on which `principal` may use `scope`, ended ones too.

        Raises ApiError: not_found when it is not there or not theirs to see, forbidden without the scope.
        """
        return (await self.sandbox_and_level(principal, sandbox_id, scope))[0]

    async def sandbox_and_level(
        self, principal: Principal, sandbox_id: str, scope: str
    ) -> tuple[SandboxRow, str | None]:
        """Like `sandbox`, with the level on which the right rests (see `watch`)."""
        row = await sandboxes.of_tenant(self._store, principal.tenant, sandbox_id)
        if row is None:
            raise hidden("sandbox", sandbox_id)
        return row, await self._check(principal, row, scope, "sandbox", sandbox_id)

    async def kernel(self, principal: Principal, kernel_id: str, scope: str) -> tuple[SandboxRow, KernelRow]:
        """A kernel and its sandbox, like `sandbox`."""
        found = await kernels.with_sandbox(self._store, principal.tenant, kernel_id)
        if found is None:
            raise hidden("kernel", kernel_id)
        await self._check(principal, found[0], scope, "kernel", kernel_id)
        return found

    async def session(
        self, principal: Principal, session_id: str, scope: str
    ) -> tuple[SandboxRow, KernelRow, SessionRow]:
        """A Jupyter session, its kernel and sandbox, like `sandbox`."""
        tenant = principal.tenant
        session = await sessions.get(self._store, tenant, session_id)
        found = None
        if session is not None:
            found = await kernels.with_sandbox(self._store, tenant, session.kernel_id)
        if session is None or found is None:
            raise hidden("session", session_id)
        await self._check(principal, found[0], scope, "session", session_id)
        return (*found, session)

    async def level(self, principal: Principal, row: SandboxRow) -> str | None:
        """owner, admin, developer, viewer (as message_allowed takes it), or None for a stranger."""
        known = sandbox_level(principal, row.tenant, row.owner, None)
        if known is not None or principal.tenant != row.tenant:
            return known
        grant = await grants.level(self._store, row.id, principal.user_id)
        return sandbox_level(principal, row.tenant, row.owner, grant)

    async def level_on(self, principal: Principal, sandbox_id: str) -> str | None:
        """`level` on the sandbox of this id; None where there is none that the principal may see."""
        row = await sandboxes.of_tenant(self._store, principal.tenant, sandbox_id)
        return None if row is None else await self.level(principal, row)

    async def list_sandboxes(
        self,
        principal: Principal,
        *,
        states: Sequence[str] | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[SandboxRow]:
        """What `principal` may see, newest first. Raises ApiError: forbidden, invalid_request (`after`)."""
        self.require(principal, SANDBOXES_READ)
        return await sandboxes.visible(
            self._store, principal.tenant, self._only(principal), states=states, limit=limit, after=after
        )

    async def list_kernels(
        self, principal: Principal, *, limit: int = 1000, after: str | None = None
    ) -> list[KernelRow]:
        """The kernels of running sandboxes that `principal` may see, newest first."""
        self.require(principal, SANDBOXES_READ)
        return await kernels.visible(
            self._store, principal.tenant, self._only(principal), limit=limit, after=after
        )

    async def list_sessions(self, principal: Principal, *, limit: int = 1000) -> list[SessionRow]:
        """The Jupyter sessions of running sandboxes that `principal` may see."""
        self.require(principal, SANDBOXES_READ)
        return await sessions.visible(self._store, principal.tenant, self._only(principal), limit=limit)

    # -- how much --------------------------------------------------------------------------------------

    def reserve(self, principal: Principal, resources: HasResources) -> Reservation:
        """Take room for a sandbox before the first await of its creation. Raises ApiError(quota_exceeded)."""
        return self._quotas.reserve(principal, resources)

    def sandbox_ended(self, sandbox_id: str) -> None:
        """Give back a sandbox's room: to be called for every end."""
        self._quotas.ended(sandbox_id)

    def sandbox_adopted(self, row: HasOwner) -> None:
        """Count a sandbox that was made past the gateway, over its tenant's quota or not."""
        self._quotas.rebuild(row)

    def reserve_pool(self, pool: HasPool) -> Callable[[], None]:
        """Take room for a pool's minimum, before it is made or changed; returns how to take that back.

        Raises ApiError(quota_exceeded), and then it has what it had.
        """
        return self._quotas.set_pool(pool, pool.min_size)

    def pool_grows(self, pool: HasPool, wanted: int) -> int:
        """How many unclaimed sandboxes a pool that wants so many may have now; they are counted."""
        return self._quotas.fit_pool(pool, wanted)

    def pool_seen(self, pool: HasPool, there: bool) -> None:
        """Count a pool that a cluster has, or has no more, whoever made or removed it.

        Those made past the gateway have no owner, and are the cluster's: they take no tenant's room.
        """
        if not there:
            self._quotas.drop_pool(pool.key)
        elif pool.owner is not None or self._quotas.pool_size(pool.key) is not None:
            self._quotas.fit_pool(pool, pool.min_size)

    def pool_gone(self, pool: HasPool) -> None:
        """Give back a pool's room."""
        self._quotas.drop_pool(pool.key)

    def usage(self, principal: Principal) -> dict[str, float]:
        """Sandboxes, cores and bytes that the principal's tenant has now."""
        return self._quotas.used(principal.tenant)

    def rate_limit(self, principal: Principal) -> dict[str, str]:
        """Count a request; the X-RateLimit-* headers of its answer. Raises ApiError(rate_limited)."""
        if principal is self._anonymous:
            return {}
        return self._limits.request(principal.key_id)

    def audit(
        self, principal: Principal | None, action: str, target: str, outcome: str, **details: Any
    ) -> None:
        """Note a decision. What happens to a living sandbox by itself is its owner's and tenant's.

        `details` must not hold keys, code, env or file contents (they are cut).
        """
        holder = self._quotas.holder(target) if principal is None else None
        if holder is not None:
            self._audit.add_for((*holder, None), action, target, outcome, details)
        else:
            self._audit.add(principal, action, target, outcome, details)

    def emit_audit(self, events: AuditEvents) -> None:
        """Emit what is written to the audit log from now on."""
        self._audit.on_written = events.emit

    async def flush_audit(self) -> None:
        """Write what waits for the audit log now, as far as the store takes it."""
        with contextlib.suppress(SQLAlchemyError):
            await self._audit.flush()

    async def write_audit(self) -> None:
        """Write what was decided until now, by the egress proxy too. Raises SQLAlchemyError."""
        self._egress.flush()
        await self._audit.flush()

    def egress(self, sandbox_id: str, host: str, port: int, outcome: str, reason: str) -> None:
        """Note a decision of the egress proxy: its owner's and tenant's, and counted (see EgressLog)."""

        def who() -> tuple[str | None, str | None, str | None]:
            holder = self._quotas.holder(sandbox_id)
            return (*holder, None) if holder is not None else (None, None, None)

        self._egress.note(who, sandbox_id, host, port, outcome, reason)

    def refused(self, principal: Principal, action: str, target: str, code: str, **details: Any) -> None:
        """Note a refusal. Those that a key gets again and again are a few entries with a count."""
        more = self._refusals.take(principal, action, code)
        if more is not None:
            self.audit(principal, action, target, code, **details, **more)

    async def refused_on(
        self, principal: Principal, action: str, sandbox_id: str, code: str, **details: Any
    ) -> None:
        """Like `refused`, with a sandbox that is named only where it is one that they may see.

        An id that is not is not told back to the admins of their tenant. What is left out asks no store.
        """
        more = self._refusals.take(principal, action, code)
        if more is not None:
            seen = sandbox_id and await self.level_on(principal, sandbox_id) is not None
            self.audit(principal, action, sandbox_id if seen else "", code, **details, **more)

    # -- inside ----------------------------------------------------------------------------------------

    @staticmethod
    def _only(principal: Principal) -> str | None:
        return None if principal.is_admin else principal.user_id

    async def _check(
        self, principal: Principal, row: SandboxRow, scope: str, kind: str, name: str
    ) -> str | None:
        level = await self.level(principal, row)
        decision = decide(principal.scopes, level, scope)
        if decision == "hidden":
            raise hidden(kind, name)
        if decision == "forbidden":
            raise ApiError(
                "forbidden", f"this key may not use {scope} on this {kind}", {"scope": scope, kind: name}
            )
        return level

    async def _ensure_anonymous(self, who: Principal) -> None:
        await users.ensure_tenant(self._store, who.tenant)
        if await users.get(self._store, who.tenant, who.user_id) is None:
            row = UserRow(
                id=who.user_id, name=who.user, tenant=who.tenant, role=who.role, created_at=time.time()
            )
            await users.insert(self._store, row)

    async def _poll(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._authenticator.poll()
                await self._grant_watches.poll()
                self._egress.flush_past()
                self._refusals.flush_past()
                failing = False
            except Exception:
                self._authenticator.distrust()
                if not failing:
                    log.exception("the store does not answer: every request looks its key up meanwhile")
                failing = True

    async def _forget(self) -> None:
        failing = False
        while True:
            try:
                more = await self._retention.apply()
                failing = False
            except Exception:
                if not failing:
                    log.exception("old entries of the audit log cannot be deleted")
                more, failing = False, True
            await asyncio.sleep(FORGET_PAUSE if more else POLL)


def _default_quota(quota: Mapping[str, Any]) -> Quota:
    try:
        return merge_quota(Quota(), quota)
    except (msgspec.ValidationError, TypeError) as error:
        raise ApiError("invalid_request", f"the configured default quota is none: {error}") from error


def hidden(kind: str, name: str) -> ApiError:
    """The one answer for what does not exist and for what is somebody else's."""
    return ApiError("not_found", f"there is no {kind} {name[:128]!r} that you can see", {kind: name[:128]})
