"""Who may do what: pure functions, no I/O.

A user's rights on a sandbox have a *level*: owner, admin (an admin of its tenant), developer or viewer (by a
grant), or none. What may be done is what the key's scopes and the level both allow. What has no level is
hidden (404), what lacks a scope is forbidden (403).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Literal

from llmsafespace_gateway.access.principal import (
    EXECUTE,
    FILES_READ,
    FILES_WRITE,
    ROLES,
    SANDBOXES_READ,
    SCOPES,
    Principal,
)

Level = Literal["owner", "admin", "developer", "viewer"]
Decision = Literal["allowed", "forbidden", "hidden"]

# A grant never lets anybody end, change or share a sandbox: that stays with its owner and the admins.
LEVEL_SCOPES: dict[str, frozenset[str]] = {
    "owner": SCOPES,
    "admin": SCOPES,
    "developer": frozenset({SANDBOXES_READ, EXECUTE, FILES_READ, FILES_WRITE}),
    "viewer": frozenset({SANDBOXES_READ, FILES_READ}),
}
GRANT_LEVELS = ("viewer", "developer")

# Requests that neither run code nor change or reveal state beyond what iopub shows to every reader.
# Not complete_request and inspect_request: both evaluate attributes in the kernel. Not history_request:
# it reveals code. Not comm_*: they run callbacks.
READ_MESSAGES = frozenset({"kernel_info_request", "comm_info_request", "is_complete_request"})
READ_CHANNELS = frozenset({"shell", "control"})
WRITE_CHANNELS = frozenset({"shell", "control", "stdin"})


def sandbox_level(principal: Principal, tenant: str, owner: str, grant: str | None) -> Level | None:
    """The level that `principal` has on a sandbox of `tenant` and `owner` (a user's id); None hides it."""
    if principal.tenant != tenant:
        return None
    if principal.user_id == owner:
        return "owner"
    if principal.is_admin:
        return "admin"
    if grant == "developer":
        return "developer"
    if grant == "viewer":
        return "viewer"
    return None


def decide(scopes: Set[str], level: str | None, scope: str) -> Decision:
    """May a key with `scopes` use `scope` on a sandbox on which its user has `level`?"""
    if level is None:
        return "hidden"
    return "allowed" if scope in scopes and scope in LEVEL_SCOPES.get(level, frozenset()) else "forbidden"


def message_allowed(principal_scopes: Set[str], grant_level: str | None, channel: str, msg_type: str) -> bool:
    """May a client send `msg_type` on `channel`? Everything that is not known to be harmless needs `execute`.

    Nothing may be sent on iopub or on a channel that is not known (Jupyter messaging protocol 5.4).
    """
    if msg_type in READ_MESSAGES and channel in READ_CHANNELS:
        needed = SANDBOXES_READ
    elif channel in WRITE_CHANNELS:
        needed = EXECUTE
    else:
        return False
    return decide(principal_scopes, grant_level, needed) == "allowed"


def key_scopes(role: str, wanted: Iterable[str] | None, creator: Set[str] | None = None) -> frozenset[str]:
    """The scopes of a new key for a user of `role`: `wanted`, or all that the role and the creator have.

    `creator` are the scopes of the key that makes the new one (None: the operator's own command line).
    Raises ValueError saying which scopes are too many.
    """
    allowed = ROLES[role] if creator is None else ROLES[role] & creator
    if wanted is None:
        return allowed
    scopes = frozenset(wanted)
    if unknown := sorted(scopes - SCOPES):
        raise ValueError(f"unknown scopes: {', '.join(unknown)}; known are {', '.join(sorted(SCOPES))}")
    if beyond := sorted(scopes - allowed):
        raise ValueError(f"scopes beyond what may be given here: {', '.join(beyond)}")
    if not scopes:
        raise ValueError("a key needs at least one scope")
    return scopes
