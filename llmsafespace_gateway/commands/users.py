"""`llmsafespace-gateway users …`: who there is, and in which role."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import msgspec
from traitlets import Bool, Enum, Unicode

from llmsafespace_gateway.access.principal import ROLES
from llmsafespace_gateway.commands.base import Command, StoreCommand, moment, print_table
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import users
from llmsafespace_gateway.tenants import DEFAULT_TENANT


class ListUsers(StoreCommand):
    """List users, by tenant and name."""

    name = "llmsafespace-gateway users list"
    description = __doc__

    tenant = Unicode(None, allow_none=True, help="Only the users of this tenant.").tag(config=True)
    json = Bool(False, help="Print JSON instead of a table.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {**StoreCommand.aliases, "tenant": "ListUsers.tenant"}
    flags: ClassVar[dict[str, Any]] = {"json": ({"ListUsers": {"json": True}}, json.help)}

    async def run(self) -> int:
        """See Command."""
        async with self.store() as store:
            found = await users.everyone(store, self.tenant)
        if self.json:
            told = [{**msgspec.to_builtins(row), "created_at": moment(row.created_at)} for row in found]
            print(json.dumps(told, indent=2))
        else:
            lines = [(row.name, row.role, row.tenant, moment(row.created_at) or "", row.id) for row in found]
            print_table(("NAME", "ROLE", "TENANT", "CREATED", "ID"), lines)
        return 0


class SetRole(StoreCommand):
    """Change the role of a user. Its keys follow at once: they never can more than the role."""

    name = "llmsafespace-gateway users role"
    description = __doc__
    examples = "llmsafespace-gateway users role --data-dir DIR --user ada --role viewer"

    user = Unicode("", help="The name of the user.").tag(config=True)
    role = Enum(sorted(ROLES), None, allow_none=True, help="What the user may do from now on.").tag(
        config=True
    )
    tenant = Unicode(DEFAULT_TENANT, help="The user's tenant.").tag(config=True)

    aliases: ClassVar[dict[str, Any]] = {
        **StoreCommand.aliases,
        "user": "SetRole.user",
        "role": "SetRole.role",
        "tenant": "SetRole.tenant",
    }

    async def run(self) -> int:
        """See Command."""
        name, role = self.needed("user"), self.needed("role")
        async with self.store() as store:
            row = await users.by_name(store, self.tenant, name)
            if row is None:
                raise ApiError(
                    "not_found",
                    f"tenant {self.tenant} has no user {name!r}; `users list` shows those that are",
                )
            await users.set_role(store, row.tenant, row.id, role)
        return 0


class Users(Command):
    """List users and change their roles. `keys create` makes them. Works while the gateway runs."""

    name = "llmsafespace-gateway users"
    description = __doc__
    subcommands: ClassVar[dict[str, Any]] = {
        "list": (ListUsers, "List users."),
        "role": (SetRole, "Change the role of a user."),
    }
