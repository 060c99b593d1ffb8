"""API keys: from the text of a request to a principal, and the end of keys noticed in time."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from llmsafespace_gateway.access.key_format import bearer, key_hash, matches, parse_key
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.recent import Recent
from llmsafespace_gateway.store import Store, keys
from llmsafespace_gateway.store.rows import KeyRow, UserRow

log = logging.getLogger(__name__)

FRESH = 5.0  # seconds that a cached key is trusted: then a changed role or quota shows
CACHED = 10_000
CLOCK_SKEW = 60.0  # how far the clocks of processes that share a store may be apart
WRITE_USES = 10.0


class Known(msgspec.Struct, frozen=True):
    """An authenticated key: its principal, its tenant's quota, when it ends and when it was looked up."""

    principal: Principal
    quota: dict[str, Any]
    expires_at: float | None
    looked_up: float  # monotonic


class Authenticator:
    """Answers from memory where it can; a revocation by any process is seen at the next poll."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By the digest of the whole key: a wrong secret always takes the way through the store, so that
        # the time of a refusal does not tell whether a key's id is in use.
        self._cache: collections.OrderedDict[bytes, Known] = collections.OrderedDict()
        self._expiries: dict[str, float | None] = {}
        self._revoked = Recent(CACHED)
        self._watchers: dict[str, dict[Callable[[], None], Principal | None]] = {}
        self._used: dict[str, float] = {}
        self._wrote_uses = time.monotonic()

    async def principal(self, authorization: str | None, query_token: str | None) -> Known:
        """The key of a request. Raises ApiError(unauthorized)."""
        text = bearer(authorization) if authorization else query_token
        if not text:
            raise unauthorized("send an API key: `Authorization: Bearer lsp_…`")
        parsed = parse_key(text)
        if parsed is None:
            raise unauthorized("this is not a valid API key")
        digest = hashlib.sha256(text.encode("ascii")).digest()
        now = time.monotonic()
        known = self._cache.get(digest)
        if known is None or now - known.looked_up > FRESH:
            known = await self._look_up(*parsed, now)
            self._remember(digest, known)
        key_id = known.principal.key_id
        if key_id in self._revoked:
            raise unauthorized("this API key was revoked")
        if known.expires_at is not None and known.expires_at <= time.time():
            raise unauthorized("this API key has expired")
        self._used[key_id] = time.time()
        return known

    def on_revoked(
        self, key_id: str, callback: Callable[[], None], principal: Principal | None = None
    ) -> Callable[[], None]:
        """See Access.on_revoked. With `principal` also when the key's rights are no longer those."""
        if not key_id:  # nobody's key: the private gateway of one process
            return lambda: None
        expires_at = self._expiries.get(key_id)
        if key_id in self._revoked or (expires_at is not None and expires_at <= time.time()):
            asyncio.get_running_loop().call_soon(callback)
            return lambda: None
        watchers = self._watchers.setdefault(key_id, {})
        watchers[callback] = principal

        def unsubscribe() -> None:
            watchers.pop(callback, None)
            if not watchers and self._watchers.get(key_id) is watchers:
                del self._watchers[key_id]

        return unsubscribe

    def revoked(self, key_ids: Iterable[str]) -> None:
        """These keys are no more: forget them and tell who watches."""
        gone = [key_id for key_id in key_ids if key_id not in self._revoked]
        if not gone:
            return
        for key_id in gone:
            self._revoked.add(key_id)
        self._drop(set(gone))

    def forget_user(self, user_id: str) -> None:
        """A user's role changed: look its keys up again, and close what was opened with the old role."""
        own = {known.principal.key_id for known in self._cache.values() if known.principal.user_id == user_id}
        self._drop(own)

    def distrust(self) -> None:
        """Revocations cannot be seen now: look every key up again."""
        self._cache.clear()

    async def poll(self) -> None:
        """Look for keys that were revoked, have expired or lost rights; now and then write down their use."""
        self.revoked(await keys.revoked_since(self._store, time.time() - CLOCK_SKEW))
        now = time.time()
        expired = {key for key in self._watchers if (at := self._expiries.get(key)) is not None and at <= now}
        self._drop(expired)
        await self._compare()
        if time.monotonic() - self._wrote_uses > WRITE_USES:
            await self.flush()

    async def _compare(self) -> None:
        """Whether another process changed a role or scopes, or removed a user, of a key that is in use."""
        in_use = {key for key in (*self._watchers, *self._used) if key}
        if not in_use:
            return
        now = await keys.rights(self._store, in_use)
        for known in list(self._cache.values()):
            if known.principal.key_id in in_use and not _still(known.principal, now):
                self._drop({known.principal.key_id})
        for key_id, watchers in list(self._watchers.items()):
            for callback, principal in list(watchers.items()):
                if key_id not in now or (principal is not None and not _still(principal, now)):
                    watchers.pop(callback, None)
                    _call(key_id, callback)

    async def flush(self) -> None:
        """Write down when keys were used."""
        self._wrote_uses = time.monotonic()
        used, self._used = self._used, {}
        await keys.used(self._store, used)

    async def _look_up(self, key_id: str, secret: str, now: float) -> Known:
        presented = key_hash(key_id, secret)
        found = await keys.known(self._store, key_id)
        if not matches(found.key.hash if found is not None else None, presented) or found is None:
            raise unauthorized("this is not a valid API key")
        if found.key.revoked_at is not None:
            self.revoked([key_id])
        return Known(_principal(found.key, found.user), found.quota, found.key.expires_at, now)

    def _remember(self, digest: bytes, known: Known) -> None:
        self._expiries[known.principal.key_id] = known.expires_at
        self._cache[digest] = known
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHED:
            _, old = self._cache.popitem(last=False)
            if old.principal.key_id not in self._watchers:
                self._expiries.pop(old.principal.key_id, None)

    def _drop(self, key_ids: set[str]) -> None:
        if not key_ids:
            return
        stale = [digest for digest, known in self._cache.items() if known.principal.key_id in key_ids]
        for digest in stale:
            del self._cache[digest]
        for key_id in key_ids:
            for callback in list(self._watchers.pop(key_id, ())):
                _call(key_id, callback)


def _call(key_id: str, callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a connection of key %s could not be closed", key_id)


def _still(principal: Principal, now: Mapping[str, keys.KeyRights]) -> bool:
    """Whether the key of a principal gives it the same rights as when it was looked up."""
    rights = now.get(principal.key_id)
    return rights is not None and (principal.user_id, principal.tenant, principal.role, principal.scopes) == (
        rights.user_id,
        rights.tenant,
        rights.role,
        rights.scopes & ROLES.get(rights.role, frozenset()),
    )


def unauthorized(message: str) -> ApiError:
    """The request has no valid key."""
    return ApiError("unauthorized", message)


def _principal(key: KeyRow, user: UserRow) -> Principal:
    # A role that was lowered after the key was made lowers the key as well.
    scopes = frozenset(key.scopes) & ROLES.get(user.role, frozenset())
    return Principal(user.id, user.name, user.tenant, user.role, key.id, scopes)
