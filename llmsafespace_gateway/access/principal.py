"""Who is asking: roles, scopes and the principal that an authenticated request carries."""

from __future__ import annotations

import msgspec

from llmsafespace_gateway.tenants import DEFAULT_TENANT

SANDBOXES_READ = "sandboxes:read"
SANDBOXES_WRITE = "sandboxes:write"
EXECUTE = "execute"
FILES_READ = "files:read"
FILES_WRITE = "files:write"
WARMPOOLS_READ = "warmpools:read"
WARMPOOLS_WRITE = "warmpools:write"
KEYS_WRITE = "keys:write"
ADMIN = "admin"

SCOPES = frozenset(
    {
        SANDBOXES_READ,
        SANDBOXES_WRITE,
        EXECUTE,
        FILES_READ,
        FILES_WRITE,
        WARMPOOLS_READ,
        WARMPOOLS_WRITE,
        KEYS_WRITE,
        ADMIN,
    }
)

ROLES: dict[str, frozenset[str]] = {
    "admin": SCOPES,
    "developer": SCOPES - {ADMIN},
    "viewer": frozenset({SANDBOXES_READ, FILES_READ, WARMPOOLS_READ}),
}


class Principal(msgspec.Struct, frozen=True):
    """An authenticated caller. `user` is the user's name; `scopes` are the key's, within its role's."""

    user_id: str
    user: str
    tenant: str
    role: str
    key_id: str
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """True when this key may see and manage everything of its tenant."""
        return ADMIN in self.scopes


def local_principal() -> Principal:
    """Everything in tenant default, without a key: for a gateway on a private unix socket of one process."""
    return Principal("local", "local", DEFAULT_TENANT, "admin", "", SCOPES)
