"""What a starting gateway makes of each sandbox's folder, so that one broken record never stops it.

A folder is judged by its records alone:

* Nobody keeps it: what is left of a dead sandbox, swept.
* It is kept and not claimed: a former gateway's warm sandbox, ended.
* It is kept, claimed, and its records can be read: taken in. When its way out cannot be opened it is
  quarantined but kept: it serves its owner without a network, and the way out is tried again.
* It is kept and its records are broken: nobody could reach it, so it is quarantined and ended as `lost`;
  a copy of its records stays in `<data_dir>/quarantine`.
* It is no sandbox's folder: quarantined and left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import msgspec

from llmsafespace_gateway.backends.local import records
from llmsafespace_gateway.backends.local.records import Bound, Broken, Claimed, State

_NAME = re.compile(r"[0-9a-f]{16}")
_TOKEN = re.compile(r"[0-9a-f]{64}")
_COPIED = ("state.json", "claim.json", "bound.json", "first")
_MOST_COPIED = 64 * 1024  # bytes of one record
_MOST_KEPT = 100  # quarantined sandboxes whose records are kept


class Found(msgspec.Struct, frozen=True):
    """The records of a living, claimed sandbox. `bound` None: the store may have no row of it."""

    state: State
    claimed: Claimed
    bound: Bound | None


def is_ours(folder: Path) -> bool:
    """Whether this is the folder of a sandbox, and not something that a person put beside them."""
    return _NAME.fullmatch(folder.name) is not None and folder.is_dir() and not folder.is_symlink()


def examine(folder: Path) -> Found | None:
    """The records of a kept folder, None when it is nobody's. Raises Broken."""
    claimed = records.load(folder / "claim.json", Claimed)
    if claimed is None:
        return None
    state = records.load(folder / "state.json", State)
    if state is None:
        raise Broken("state.json is missing")
    if state.name != folder.name:
        raise Broken(f"state.json is another sandbox's: {state.name[:64]!r}")
    if not _TOKEN.fullmatch(state.token):
        raise Broken("state.json has no token")
    if not state.languages:
        raise Broken("state.json names no language")
    if not claimed.sandbox_id:
        raise Broken("claim.json names no sandbox")
    return Found(state, claimed, records.read(folder / "bound.json", Bound))


def sandbox_id_of(folder: Path) -> tuple[str | None, str | None]:
    """The id and tenant of a sandbox whose records are partly broken, as far as they can be read."""
    claimed = records.read(folder / "claim.json", Claimed)
    return (claimed.sandbox_id, claimed.tenant) if claimed is not None else (None, None)


def keep_aside(folder: Path, quarantine: Path, reason: str) -> None:
    """Copy a sandbox's records for whoever looks; nothing happens when that fails (blocking)."""
    with contextlib.suppress(OSError):
        quarantine.mkdir(mode=0o700, exist_ok=True)
        kept = sorted(quarantine.iterdir(), key=lambda path: path.lstat().st_mtime)
        for oldest in kept[: max(0, len(kept) - _MOST_KEPT + 1)]:
            shutil.rmtree(oldest, ignore_errors=True)
        target = quarantine / folder.name
        target.mkdir(mode=0o700, exist_ok=True)
        (target / "reason").write_text(reason + "\n")
        for name in _COPIED:
            with contextlib.suppress(OSError):
                _copy(folder / name, target / name)


def _copy(source: Path, target: Path) -> None:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        content = file.read(_MOST_COPIED)
    target.write_bytes(content)
    target.chmod(0o600)
