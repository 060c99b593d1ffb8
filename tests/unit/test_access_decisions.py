"""Who may do what: every decision as a table."""

from __future__ import annotations

import pytest

from llmsafespace_gateway.access.decisions import (
    LEVEL_SCOPES,
    decide,
    key_scopes,
    message_allowed,
    sandbox_level,
)
from llmsafespace_gateway.access.principal import ROLES, SCOPES, Principal


def principal(user: str, tenant: str = "acme", role: str = "developer", scopes: object = None) -> Principal:
    given = ROLES[role] if scopes is None else frozenset(scopes)  # type: ignore[call-overload]
    return Principal(user, user, tenant, role, f"key-{user}", given)


ADA, BOB = principal("ada"), principal("bob")
ADMIN = principal("root", role="admin")
NARROW_ADMIN = principal("root", role="admin", scopes={"sandboxes:read", "execute"})


@pytest.mark.parametrize(
    ("who", "tenant", "owner", "grant", "level"),
    [
        (ADA, "acme", "ada", None, "owner"),
        (ADA, "acme", "ada", "viewer", "owner"),
        (BOB, "acme", "ada", None, None),
        (BOB, "acme", "ada", "viewer", "viewer"),
        (BOB, "acme", "ada", "developer", "developer"),
        (BOB, "acme", "ada", "owner", None),
        (ADMIN, "acme", "ada", None, "admin"),
        (NARROW_ADMIN, "acme", "ada", None, None),
        (ADMIN, "other", "ada", None, None),
        (ADMIN, "other", "root", "developer", None),
        (ADA, "other", "ada", "developer", None),
        (principal("vera", role="viewer"), "acme", "vera", None, "owner"),
    ],
)
def test_level(who: Principal, tenant: str, owner: str, grant: str | None, level: str | None) -> None:
    assert sandbox_level(who, tenant, owner, grant) == level


@pytest.mark.parametrize("scope", sorted(SCOPES))
@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("level", [*LEVEL_SCOPES, None, "nonsense"])
def test_a_decision_needs_the_scope_and_the_level(scope: str, role: str, level: str | None) -> None:
    got = decide(ROLES[role], level, scope)
    if level is None:
        assert got == "hidden"
    else:
        both = scope in ROLES[role] and scope in LEVEL_SCOPES.get(level, frozenset())
        assert got == ("allowed" if both else "forbidden")


def test_grants_neither_end_nor_share_a_sandbox() -> None:
    for level in ("viewer", "developer"):
        assert decide(SCOPES, level, "sandboxes:write") == "forbidden"
    assert decide(SCOPES, "viewer", "execute") == "forbidden"
    assert decide(SCOPES, "viewer", "files:write") == "forbidden"


def test_roles() -> None:
    assert ROLES["admin"] == SCOPES
    assert ROLES["developer"] == SCOPES - {"admin"}
    assert all(scope.endswith(":read") for scope in ROLES["viewer"])
    assert ROLES["viewer"] == {scope for scope in SCOPES if scope.endswith(":read")}


READ_ONLY = ["kernel_info_request", "comm_info_request", "is_complete_request"]
RUNS = [
    ("shell", "execute_request"),
    ("shell", "inspect_request"),
    ("shell", "complete_request"),
    ("shell", "history_request"),
    ("shell", "comm_open"),
    ("shell", "comm_msg"),
    ("shell", "comm_close"),
    ("shell", "connect_request"),
    ("shell", "an_extension_request"),
    ("shell", ""),
    ("control", "execute_request"),
    ("control", "interrupt_request"),
    ("control", "shutdown_request"),
    ("control", "debug_request"),
    ("control", "create_subshell_request"),
    ("control", "delete_subshell_request"),
    ("control", "list_subshell_request"),
    ("control", "usage_request"),
    ("stdin", "input_reply"),
    ("stdin", "kernel_info_request"),
]


@pytest.mark.parametrize(("channel", "message"), RUNS)
def test_what_runs_or_reveals_code_needs_execute(channel: str, message: str) -> None:
    for level in ("owner", "admin", "developer"):
        assert message_allowed(ROLES["developer"], level, channel, message)
        assert not message_allowed(ROLES["viewer"], level, channel, message)
        assert not message_allowed(ROLES["developer"] - {"execute"}, level, channel, message)
    assert not message_allowed(SCOPES, "viewer", channel, message)
    assert not message_allowed(SCOPES, None, channel, message)


@pytest.mark.parametrize("message", READ_ONLY)
@pytest.mark.parametrize("channel", ["shell", "control"])
def test_viewers_may_ask_what_harms_nobody(channel: str, message: str) -> None:
    for level in LEVEL_SCOPES:
        assert message_allowed(ROLES["viewer"], level, channel, message)
    assert not message_allowed(SCOPES, None, channel, message)
    assert not message_allowed({"execute"}, "owner", channel, message)


@pytest.mark.parametrize("channel", ["iopub", "hb", "", "Shell", "shell "])
@pytest.mark.parametrize("message", [*READ_ONLY, "execute_request", "stream"])
def test_other_channels_take_nothing(channel: str, message: str) -> None:
    assert not message_allowed(SCOPES, "owner", channel, message)


def test_scopes_of_a_key() -> None:
    assert key_scopes("viewer", None) == ROLES["viewer"]
    assert key_scopes("admin", ["execute"]) == {"execute"}
    assert key_scopes("admin", None, {"execute", "keys:write"}) == {"execute", "keys:write"}
    for role, wanted, creator in (
        ("viewer", ["execute"], None),
        ("admin", ["admin"], {"execute"}),
        ("admin", ["nonsense"], None),
        ("admin", [], None),
    ):
        with pytest.raises(ValueError, match="scope"):
            key_scopes(role, wanted, creator)
