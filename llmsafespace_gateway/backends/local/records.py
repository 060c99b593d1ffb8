"""What the backend keeps on disk about each sandbox: one folder, removed by its keeper at the end.

`<data_dir>/sandboxes/<name>/`: state.json (what it is, its token), claim.json (whose it is, once claimed),
bound.json (what its owner asked for, once the store has it), lock (held by its keeper), first (its first
process), until (how long it may live), end (the word of who ends it), agent.sock, egress/.
`<data_dir>/ended/<name>.json`: how it ended, until the store knows.
`<data_dir>/quarantine/<name>/`: records of a sandbox that could not be taken in, for whoever looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmsafespace_gateway.backends.base import EgressRule, Resources, Start
from llmsafespace_protocol.requests import Limits

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock on 64-bit Linux; l_pid is the holder
T = TypeVar("T")

RESERVED = 4096  # bytes of a record of an end
WORD = 64  # bytes of the word of who ends a sandbox


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a started sandbox is. `token` is hex; `recipe` tells whether a pool still wants it so."""

    name: str
    token: str
    runtime: str
    languages: tuple[str, ...]
    recipe: str
    pool: str | None
    resources: Resources
    isolation: dict[str, Any]
    uid: int
    started_at: float
    cgroups: tuple[str, ...]


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a sandbox is."""

    sandbox_id: str
    owner: str
    tenant: str
    start: Start
    egress: tuple[EgressRule, ...] = ()
    max_lifetime: float = 86400.0  # as asked for at the claim


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of a sandbox, so that one that lost its store is adopted as it was.

    It is written after the store's row: a claimed sandbox without it was never handed to anybody.
    """

    runtime: str  # the one asked for
    security_level: str
    resources: Resources
    limits: Limits
    use_warm_pool: bool
    context_id: str
    language: str | None
    metadata: dict[str, str]
    since: float


class EndRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a sandbox ended, as its keeper wrote it. `sandbox_id` None: nobody had claimed it."""

    sandbox_id: str | None
    end: str
    message: str = ""


def write(path: Path, content: msgspec.Struct) -> None:
    """Write JSON that only this user can read; it appears whole or not at all."""
    staging = path.with_name(path.name + ".new")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(content))
    staging.rename(path)


def reserved(path: Path) -> Path:
    """The file whose blocks are kept for a record that must be written although the disk is full."""
    return path.with_name(path.name + ".new")


def reserve(path: Path, size: int = RESERVED) -> None:
    """Take the room for a later `write_reserved`. Raises OSError when there is none."""
    path.write_bytes(b" " * size)


def write_reserved(path: Path, content: msgspec.Struct) -> None:
    """`write` into the room that was reserved: white space behind JSON is nothing."""
    staging = reserved(path)
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(content).ljust(os.fstat(descriptor).st_size))
    staging.rename(path)


def overwrite(path: Path, word: str) -> None:
    """Put a word into a file whose room was reserved; nothing when that is gone."""
    with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
        file.write(word.encode().ljust(WORD))


class Broken(Exception):
    """A record is there and cannot be read; the message names it and says why."""


def load(path: Path, kind: type[T]) -> T | None:
    """What `write` wrote, None when it is not there. Raises Broken."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise Broken(f"{path.name} cannot be read: {error}") from error


def read(path: Path, kind: type[T]) -> T | None:
    """What `write` wrote, None when it is not there or broken."""
    try:
        return load(path, kind)
    except Broken:
        return None


def keeper_of(folder: Path) -> int | None:
    """The process that keeps the sandbox of this folder, None when it is gone.

    The kernel itself says who holds the lock, so a later process of the same number is never meant.
    """
    try:
        with open(folder / "lock", "rb+") as lock:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    except OSError:
        return None
    return pid if kind != fcntl.F_UNLCK else None


def remove(path: Path) -> None:
    """Unlink, also when it is gone already."""
    with contextlib.suppress(OSError):
        path.unlink()
