"""`llmsafespace-gateway keys …`: API keys. Works while the gateway runs, which notices at once."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
from traitlets import Bool, Enum, Unicode

from llmsafespace_gateway.access.accounts import check_names, ensure_user, issue_key
from llmsafespace_gateway.access.decisions import key_scopes
from llmsafespace_gateway.access.principal import ROLES, SCOPES
from llmsafespace_gateway.commands.base import Command, StoreCommand, moment, print_table
from llmsafespace_gateway.configuration import UsageError
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import keys
from llmsafespace_gateway.store.rows import KeyRow, UserRow
from llmsafespace_gateway.tenants import DEFAULT_TENANT

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_HEAD = ("ID", "USER", "ROLE", "TENANT", "STATE", "CREATED", "EXPIRES", "LAST USED", "SCOPES", "NAME")


def expiry(text: str, now: float) -> float:
    """The moment that `30d`, `12h`, `2027-01-01` (midnight UTC) or an ISO 8601 date and time means.

    Raises UsageError for anything else and for a moment that is not in the future.
    """
    if span := re.fullmatch(r"(\d{1,9})([smhdw])", text.strip()):
        end = now + int(span[1]) * _UNITS[span[2]]
    else:
        try:
            stated = datetime.fromisoformat(text.strip())
        except ValueError:
            raise UsageError(
                f"--expires {text!r} is not a time: say 30d, 12h, 2027-01-01 or 2027-01-01T12:00:00Z"
            ) from None
        end = (stated if stated.tzinfo is not None else stated.replace(tzinfo=UTC)).timestamp()
    if end <= now:
        raise UsageError(f"--expires {text!r} is in the past")
    return end


class CreateKey(StoreCommand):
    """Make a key and print it, this once. User and tenant are made where they are missing."""

    name = "llmsafespace-gateway keys create"
    description = __doc__
    examples = "llmsafespace-gateway keys create --data-dir DIR --user ada --role developer --expires 30d"

    user = Unicode("", help="Whose key it is.").tag(config=True)
    role = Enum(sorted(ROLES), None, allow_none=True, help="What the user may do in its tenant.").tag(
        config=True
    )
    tenant = Unicode(DEFAULT_TENANT, help="The user's tenant.").tag(config=True)
    scopes = Unicode(
        None,
        allow_none=True,
        help=f"Comma-separated, fewer than the role's; of: {', '.join(sorted(SCOPES))}.",
    ).tag(config=True)
    expires = Unicode("", help="30d, 12h, 2027-01-01 or an ISO 8601 time; without it the key stays.").tag(
        config=True
    )
    note = Unicode("", help="A note that lists show.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {
        **StoreCommand.aliases,
        "user": "CreateKey.user",
        "role": "CreateKey.role",
        "tenant": "CreateKey.tenant",
        "scopes": "CreateKey.scopes",
        "expires": "CreateKey.expires",
        "name": "CreateKey.note",
    }

    async def run(self) -> int:
        """See Command."""
        user, role, tenant = self.needed("user").strip(), self.needed("role"), self.tenant.strip()
        try:
            check_names(tenant, user)
            scopes = key_scopes(role, None if self.scopes is None else _listed(self.scopes))
        except ApiError as error:
            raise UsageError(error.message) from None
        except ValueError as error:
            raise UsageError(f"--scopes: {error}") from None
        expires_at = expiry(self.expires, time.time()) if self.expires else None
        async with self.store(make=True) as store:
            row = await ensure_user(store, tenant, user, role)
            _, text = await issue_key(store, row, self.note[:128], scopes, expires_at)
        print(text)
        return 0


class ListKeys(StoreCommand):
    """List keys, newest first."""

    name = "llmsafespace-gateway keys list"
    description = __doc__

    tenant = Unicode(None, allow_none=True, help="Only the keys of this tenant.").tag(config=True)
    json = Bool(False, help="Print JSON instead of a table.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {**StoreCommand.aliases, "tenant": "ListKeys.tenant"}
    flags: ClassVar[dict[str, Any]] = {"json": ({"ListKeys": {"json": True}}, json.help)}

    async def run(self) -> int:
        """See Command."""
        async with self.store() as store:
            found = await keys.everything(store, self.tenant)
        if self.json:
            print(json.dumps([_document(key, user) for key, user in found], indent=2))
        else:
            print_table(_HEAD, [_line(key, user) for key, user in found])
        return 0


class RevokeKey(StoreCommand):
    """Revoke a key for good, and close what it has open."""

    name = "llmsafespace-gateway keys revoke"
    description = "Revoke the key ID (as `keys list` shows it) for good, and close what it has open."
    arguments = ("ID",)

    async def run(self) -> int:
        """See Command."""
        wanted = self.word("ID")
        # A person may give the whole key instead of its id.
        key_id = wanted.split("_")[1] if wanted.count("_") == 2 and wanted.startswith("lsp_") else wanted
        async with self.store() as store:
            found = await keys.known(store, key_id)
            row = await keys.revoke(store, found.user.id, found.key.id, time.time()) if found else None
        if row is None:
            raise ApiError("not_found", f"there is no key {key_id!r}; `keys list` shows those that are")
        print(f"revoked {row.id}", file=sys.stderr)
        return 0


class Keys(Command):
    """Make, list and revoke API keys. Works while the gateway runs, which notices at once."""

    name = "llmsafespace-gateway keys"
    description = __doc__
    subcommands: ClassVar[dict[str, Any]] = {
        "create": (CreateKey, "Make a key."),
        "list": (ListKeys, "List keys, newest first."),
        "revoke": (RevokeKey, "Revoke a key for good."),
    }


def _listed(text: str) -> list[str]:
    return [scope.strip() for scope in text.split(",") if scope.strip()]


def _document(key: KeyRow, user: UserRow) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(key)
    del document["hash"]
    moments = {name: moment(document[name]) for name in document if name.endswith("_at")}
    return {**document, **moments, "user": user.name, "role": user.role, "tenant": user.tenant}


def _line(key: KeyRow, user: UserRow) -> tuple[str, ...]:
    if key.revoked_at is not None:
        state = "revoked"
    elif key.expires_at is not None and key.expires_at <= time.time():
        state = "expired"
    else:
        state = "active"
    whole = frozenset(key.scopes) == ROLES.get(user.role)
    return (
        key.id,
        user.name,
        user.role,
        user.tenant,
        state,
        moment(key.created_at) or "",
        moment(key.expires_at) or "never",
        moment(key.last_used_at) or "never",
        "all of the role" if whole else ",".join(key.scopes),
        key.name,
    )
