"""What a tenant and a user may have at once. Everything here is synchronous: no await can get in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from llmsafespace_gateway.access.principal import Principal
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.recent import Recent

_REMEMBERED = 10_000
_UNLIMITED = 1_000_000


class HasResources(Protocol):
    """Anything with cores and bytes: a request's resources, a sandbox's row."""

    @property
    def cpu(self) -> float: ...
    @property
    def memory(self) -> int: ...


class HasOwner(HasResources, Protocol):
    """A sandbox's row, as far as quotas need it."""

    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def owner(self) -> str: ...


class HasPool(Protocol):
    """A warm pool of a tenant's, as far as quotas need it; `owner` is a user's id where it is known."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def min_size(self) -> int: ...
    @property
    def resources(self) -> HasResources: ...


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At most so many sandboxes, cores and bytes at once; None is unlimited."""

    sandboxes: int | None = None
    cpu: float | None = None
    memory: int | None = None


class Quota(Limit, frozen=True, forbid_unknown_fields=True):
    """A tenant's limit, and with `user` the limit of each of its users."""

    user: Limit = Limit()


class _Use:
    """Exact sums: cores are counted in thousandths."""

    __slots__ = ("cpu", "memory", "sandboxes")

    def __init__(self) -> None:
        self.sandboxes = self.cpu = self.memory = 0

    def add(self, sandboxes: int, cpu: int, memory: int) -> None:
        self.sandboxes += sandboxes
        self.cpu += cpu
        self.memory += memory


class Reservation:
    """Room for one sandbox; a pool's is for `count`, and `cpu` and `memory` are of all of them.

    Commit it with the sandbox's id, or release it; a second call does nothing. As a context manager it is
    released on leaving, unless it was committed.
    """

    def __init__(
        self, quotas: Quotas, tenant: str, owner: str, cpu: int, memory: int, count: int = 1
    ) -> None:
        self._quotas: Quotas | None = quotas
        self.tenant = tenant
        self.owner = owner
        self.cpu = cpu
        self.memory = memory
        self.count = count

    def commit(self, sandbox_id: str) -> None:
        """The sandbox exists: the room is its until it ends. One that was counted already gives it back."""
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            quotas.settle(self, sandbox_id)

    def release(self) -> None:
        """No sandbox came of it."""
        quotas, self._quotas = self._quotas, None
        if quotas is not None:
            quotas.give_back(self)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class Quotas:
    """Use per tenant and per user, of this gateway process."""

    def __init__(self, default: Quota) -> None:
        self._default = default
        self._tenants: dict[str, Quota] = {}
        self._stated: dict[str, dict[str, Any]] = {}
        self._use: dict[tuple[str, str | None], _Use] = {}
        self._holders: dict[str, Reservation] = {}
        self._pools: dict[str, Reservation] = {}
        self._ended = Recent(_REMEMBERED)

    def set_quota(self, tenant: str, quota: Mapping[str, Any]) -> None:
        """`quota` as a tenant's row has it: it overrides the default, key by key."""
        if self._stated.get(tenant) != quota:
            self._tenants[tenant] = merge_quota(self._default, quota)
            self._stated[tenant] = dict(quota)

    def reserve(self, principal: Principal, resources: HasResources) -> Reservation:
        """Take room for one sandbox of `principal`. Raises ApiError(quota_exceeded)."""
        wanted = Reservation(
            self, principal.tenant, principal.user_id, _thousandths(resources.cpu), resources.memory
        )
        quota = self._tenants.get(principal.tenant, self._default)
        self._check(wanted, quota, None)
        self._check(wanted, quota.user, principal.user_id)
        self._count(wanted, 1)
        return wanted

    # -- warm pools: what is warm and unclaimed; a sandbox that was claimed has room of its own --------

    def set_pool(self, pool: HasPool, count: int) -> Callable[[], None]:
        """A pool has `count` sandboxes from now on; returns how to give it back what it had.

        Raises ApiError(quota_exceeded), and then changes nothing.
        """
        before = self._pools.get(pool.key)
        self.drop_pool(pool.key)
        try:
            wanted = self._of_pool(pool, count)
            quota = self._tenants.get(wanted.tenant, self._default)
            self._check(wanted, quota, None)
            self._check(wanted, quota.user, wanted.owner)
        except BaseException:
            self._hold_pool(pool.key, before)
            raise
        self._hold_pool(pool.key, wanted)

        def undo() -> None:
            # What has been counted since is what the pool has; only this very change is taken back.
            if self._pools.get(pool.key) is wanted:
                self.drop_pool(pool.key)
                self._hold_pool(pool.key, before)

        return undo

    def fit_pool(self, pool: HasPool, wanted: int) -> int:
        """How many of the `wanted` sandboxes a pool may have, which are counted: not below its minimum.

        The minimum was reserved when it was made; where a quota was lowered since, it stands all the same.
        """
        if pool.tenant is None:
            return wanted
        self.drop_pool(pool.key)
        quota = self._tenants.get(pool.tenant, self._default)
        one = self._of_pool(pool, 1)
        room = min(self._room(quota, one, None), self._room(quota.user, one, one.owner))
        count = max(min(wanted, room), min(wanted, pool.min_size))
        self._hold_pool(pool.key, self._of_pool(pool, count))
        return count

    def drop_pool(self, key: str) -> None:
        """A pool is no more."""
        held = self._pools.pop(key, None)
        if held is not None:
            self._count(held, -1)

    def _hold_pool(self, key: str, held: Reservation | None) -> None:
        if held is not None:
            self._pools[key] = held
            self._count(held, 1)

    def pool_size(self, key: str) -> int | None:
        """How many sandboxes are counted for a pool; None when it is not counted."""
        held = self._pools.get(key)
        return None if held is None else held.count

    def _of_pool(self, pool: HasPool, count: int) -> Reservation:
        cpu, memory = _thousandths(pool.resources.cpu) * count, pool.resources.memory * count
        return Reservation(self, pool.tenant or "", pool.owner or "", cpu, memory, count)

    def _room(self, limit: Limit, one: Reservation, owner: str | None) -> int:
        used = self.used(one.tenant, owner)
        rooms = [_UNLIMITED]
        for name, amount in (("sandboxes", 1000), ("cpu", one.cpu), ("memory", one.memory * 1000)):
            most = getattr(limit, name)
            if most is not None and amount:
                rooms.append(max(0, (round(most * 1000) - round(used[name] * 1000)) // amount))
        return min(rooms)

    # -- sandboxes -----------------------------------------------------------------------------------

    def rebuild(self, row: HasOwner) -> None:
        """Count a sandbox that lives already; one that is counted stays as it is."""
        if row.id not in self._holders and row.id not in self._ended:
            held = Reservation(self, row.tenant, row.owner, _thousandths(row.cpu), row.memory)
            self._holders[row.id] = held
            self._count(held, 1)

    def ended(self, sandbox_id: str) -> None:
        """A sandbox is no more."""
        held = self._holders.pop(sandbox_id, None)
        if held is not None:
            self._count(held, -1)
        # It may have ended before its creator committed the reservation.
        self._ended.add(sandbox_id)

    def holder(self, sandbox_id: str) -> tuple[str, str] | None:
        """Tenant and owner of a living sandbox."""
        held = self._holders.get(sandbox_id)
        return None if held is None else (held.tenant, held.owner)

    def settle(self, reservation: Reservation, sandbox_id: str) -> None:
        """Reservation.commit."""
        if sandbox_id in self._holders or sandbox_id in self._ended:
            self._count(reservation, -1)
        else:
            self._holders[sandbox_id] = reservation

    def give_back(self, reservation: Reservation) -> None:
        """Reservation.release."""
        self._count(reservation, -1)

    def used(self, tenant: str, owner: str | None = None) -> dict[str, float]:
        """What a tenant, or one of its users, has now."""
        use = self._use.get((tenant, owner)) or _Use()
        return {"sandboxes": use.sandboxes, "cpu": use.cpu / 1000, "memory": use.memory}

    def _count(self, reservation: Reservation, sign: int) -> None:
        for owner in (None, reservation.owner):
            key = (reservation.tenant, owner)
            use = self._use.setdefault(key, _Use())
            use.add(sign * reservation.count, sign * reservation.cpu, sign * reservation.memory)
            if use.sandboxes == 0:
                del self._use[key]

    def _check(self, wanted: Reservation, limit: Limit, owner: str | None) -> None:
        used = self.used(wanted.tenant, owner)
        asked = {"sandboxes": float(wanted.count), "cpu": wanted.cpu / 1000, "memory": wanted.memory}
        for name, amount in asked.items():
            most = getattr(limit, name)
            # Thousandths of a core and bytes are whole numbers: rounding keeps floats from deciding.
            if most is not None and round((used[name] + amount) * 1000) > round(most * 1000):
                raise _exceeded(name, most, used[name], amount, "user" if owner else "tenant")


def merge_quota(default: Quota, override: Mapping[str, Any]) -> Quota:
    """`default` with what `override` says. Raises msgspec.ValidationError for a quota that makes no sense."""
    merged = {**msgspec.to_builtins(default), **override}
    merged["user"] = {**msgspec.to_builtins(default.user), **(override.get("user") or {})}
    return msgspec.convert(merged, Quota)


def _thousandths(cores: float) -> int:
    return round(cores * 1000)


def _exceeded(name: str, most: float, used: float, amount: float, whose: str) -> ApiError:
    return ApiError(
        "quota_exceeded",
        f"the {whose}'s quota of {name} is {most:g}, {used:g} are in use and {amount:g} more were asked for; "
        "end a sandbox, or ask an administrator for more",
        {"quota": name, "limit": most, "used": used, "requested": amount, "of": whose},
    )
