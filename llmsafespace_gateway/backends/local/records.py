"""What the backend keeps on disk about each sandbox: one folder, removed by its keeper at the end.

`<data_dir>/sandboxes/<name>/`: state.json (what it is, its token), claim.json (whose it is, once claimed),
lock (held by its keeper), first (its first process), until (how long it may live), end (the word of who ends
it), agent.sock, egress/.
`<data_dir>/ended/<name>.json`: how it ended, until somebody has taken note.
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

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock on 64-bit Linux; l_pid is the holder
T = TypeVar("T")


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


def read(path: Path, kind: type[T]) -> T | None:
    """What `write` wrote, None when it is not there or broken."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
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
