"""`llmsafespace-gateway keys …`: API keys for the operator, who owns the data dir and needs no key."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from llmsafespace_gateway.access.administration import check_names, ensure_user, issue_key
from llmsafespace_gateway.access.decisions import key_scopes
from llmsafespace_gateway.access.principal import ROLES, SCOPES
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, keys, sqlite_url, stated_url
from llmsafespace_gateway.store.rows import KeyRow, UserRow
from llmsafespace_gateway.tenants import DEFAULT_TENANT

USAGE_ERROR = 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Misuse(Exception):
    """The command line asks for something that cannot be; the text says what to do instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `keys` with these arguments; the exit status: 0, or 2 and a line on stderr that says what to do."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = asyncio.run(arguments.run(arguments))
        return status
    except (Misuse, ApiError) as error:
        return _refuse(str(error))
    except (OSError, SQLAlchemyError, RuntimeError) as error:
        reason = getattr(error, "orig", None) or error
        return _refuse(f"the store of this gateway cannot be used: {reason}; check --data-dir")


def expiry(text: str, now: float) -> float:
    """The moment that `30d`, `12h`, `2027-01-01` (midnight UTC) or an ISO 8601 date and time means.

    Raises Misuse for anything else and for a moment that is not in the future.
    """
    if span := re.fullmatch(r"(\d{1,9})([smhdw])", text.strip()):
        moment = now + int(span[1]) * _UNITS[span[2]]
    else:
        try:
            stated = datetime.fromisoformat(text.strip())
        except ValueError:
            raise Misuse(
                f"--expires {text!r} is not a time: say 30d, 12h, 2027-01-01 or 2027-01-01T12:00:00Z"
            ) from None
        moment = (stated if stated.tzinfo is not None else stated.replace(tzinfo=UTC)).timestamp()
    if moment <= now:
        raise Misuse(f"--expires {text!r} is in the past")
    return moment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmsafespace-gateway keys",
        description="Make, list and revoke API keys. Works while the gateway runs, which notices at once.",
        epilog="example: llmsafespace-gateway keys create --data-dir DIR --user ada --role developer",
    )
    commands = parser.add_subparsers(required=True, metavar="create|list|revoke")
    _create_parser(commands)
    listing = commands.add_parser("list", help="list keys", description="List keys, newest first.")
    listing.add_argument("--tenant", help="only the keys of this tenant")
    listing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser(
        "revoke", help="revoke a key", description="Revoke a key for good, and close what it has open."
    )
    revoke.add_argument("id", metavar="ID", help="the id of the key, as `keys list` shows it")
    revoke.set_defaults(run=_revoke)
    for command in (listing, revoke):
        _store_options(command)
    return parser


def _create_parser(commands: Any) -> None:
    create = commands.add_parser(
        "create",
        help="make a key",
        description="Make a key and print it, this once. User and tenant are made where they are missing.",
    )
    create.add_argument("--user", required=True, help="whose key it is")
    create.add_argument(
        "--role", required=True, choices=sorted(ROLES), help="what the user may do in its tenant"
    )
    create.add_argument("--tenant", default=DEFAULT_TENANT, help="the user's tenant (default: %(default)s)")
    create.add_argument(
        "--scopes",
        help=f"comma-separated, fewer than the role's; of: {', '.join(sorted(SCOPES))}",
    )
    create.add_argument("--expires", help="30d, 12h, 2027-01-01 or an ISO 8601 time (default: never)")
    create.add_argument("--name", default="", help="a note that lists show")
    create.set_defaults(run=_create)
    _store_options(create)


def _store_options(parser: argparse.ArgumentParser) -> None:
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(base, "llmsafespace").expanduser(),
        help="the gateway's data dir (default: %(default)s)",
    )
    parser.add_argument("--database-url", default="", help="the gateway's database_url, where it has one")
    parser.add_argument(
        "--database-url-file",
        default="",
        metavar="FILE",
        help="a file with that URL: for one with a password",
    )


def _url(arguments: argparse.Namespace, make: bool) -> str:
    if url := stated_url(arguments.database_url, arguments.database_url_file):
        return url
    data_dir: Path = arguments.data_dir.expanduser().absolute()
    if make:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    elif not (data_dir / "db.sqlite").exists():
        raise Misuse(f"there is no gateway in {data_dir}; name its folder with --data-dir")
    return sqlite_url(data_dir)


async def _create(arguments: argparse.Namespace) -> int:
    user, tenant = arguments.user.strip(), arguments.tenant.strip()
    check_names(tenant, user)
    expires_at = expiry(arguments.expires, time.time()) if arguments.expires else None
    wanted = None
    if arguments.scopes is not None:
        wanted = [scope.strip() for scope in arguments.scopes.split(",") if scope.strip()]
    try:
        scopes = key_scopes(arguments.role, wanted)
    except ValueError as error:
        raise Misuse(f"--scopes: {error}") from None
    store = await Store.open(_url(arguments, make=True))
    try:
        row = await ensure_user(store, tenant, user, arguments.role)
        _, text = await issue_key(store, row, arguments.name[:128], scopes, expires_at)
    finally:
        await store.close()
    print(text)
    return 0


async def _list(arguments: argparse.Namespace) -> int:
    store = await Store.open(_url(arguments, make=False))
    try:
        found = await keys.everything(store, arguments.tenant)
    finally:
        await store.close()
    if arguments.json:
        print(json.dumps([_document(key, user) for key, user in found], indent=2))
    else:
        _print_table([_line(key, user) for key, user in found])
    return 0


async def _revoke(arguments: argparse.Namespace) -> int:
    store = await Store.open(_url(arguments, make=False))
    try:
        found = await keys.known(store, _id(arguments.id))
        row = await keys.revoke(store, found.user.id, found.key.id, time.time()) if found else None
    finally:
        await store.close()
    if row is None:
        raise Misuse(f"there is no key {arguments.id!r}; `keys list` shows those that are")
    print(f"revoked {row.id}", file=sys.stderr)
    return 0


def _id(text: str) -> str:
    """Forgive a person who gives the whole key instead of its id."""
    return text.split("_")[1] if text.count("_") == 2 and text.startswith("lsp_") else text


def _document(key: KeyRow, user: UserRow) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(key)
    del document["hash"]
    moments = {name: _moment(document[name]) for name in document if name.endswith("_at")}
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
        _moment(key.created_at) or "",
        _moment(key.expires_at) or "never",
        _moment(key.last_used_at) or "never",
        "all of the role" if whole else ",".join(key.scopes),
        key.name,
    )


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _print_table(lines: list[tuple[str, ...]]) -> None:
    head = ("ID", "USER", "ROLE", "TENANT", "STATE", "CREATED", "EXPIRES", "LAST USED", "SCOPES", "NAME")
    rows = [head, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _refuse(message: str) -> int:
    print(f"llmsafespace-gateway keys: {message}", file=sys.stderr)
    return USAGE_ERROR
