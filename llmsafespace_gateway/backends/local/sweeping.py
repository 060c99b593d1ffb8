"""What is left of sandboxes whose keepers were killed, and of starts that failed: removed (blocking)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path

from llmsafespace_gateway.backends.local import limits, plans, records
from llmsafespace_gateway.backends.local.keeper import files, processes
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.backends.local.records import Claimed, EndRecord, State

log = logging.getLogger("llmsafespace.local")

_KEEPER_WITHIN = 10.0  # seconds for a keeper to end a sandbox whose start failed


def sweep(host: Host, folder: Path) -> EndRecord | None:
    """Remove everything of a sandbox whose keeper was killed; how it ended, when it was somebody's.

    Its record of the end is left for the store, when the disk has room for it.
    """
    name = folder.name
    ended = host.data_dir / "ended" / f"{name}.json"
    claimed = records.read(folder / "claim.json", Claimed)
    _remove_sandbox(host, folder)
    record = records.read(ended, EndRecord)
    if record is None and claimed is not None:
        message = "the process that kept the sandbox was killed"
        record = EndRecord(sandbox_id=claimed.sandbox_id, end="lost", message=message)
        with contextlib.suppress(OSError):
            records.write_reserved(ended, record)
    if claimed is None:
        records.remove(records.reserved(ended))
    files.remove_tree(str(folder))
    log.warning("swept what was left of sandbox %s", name)
    return record


def undo_start(host: Host, folder: Path) -> None:
    """Remove everything of a sandbox that could not be started, its keeper too if that runs already."""
    if not _end_keeper(folder, signal.SIGTERM):
        _end_keeper(folder, signal.SIGKILL)  # it hangs: what it would have removed is removed here
        _remove_sandbox(host, folder)
    for name in ("", ".new"):
        records.remove(host.data_dir / "ended" / f"{folder.name}.json{name}")
    if records.keeper_of(folder) is None:
        files.remove_tree(str(folder))


def _end_keeper(folder: Path, number: signal.Signals) -> bool:
    """Send this signal until the keeper is gone; False when it is not within the time for that."""
    until = time.monotonic() + _KEEPER_WITHIN
    while (pid := records.keeper_of(folder)) is not None:
        if time.monotonic() > until:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        time.sleep(0.02)
    return True


def _remove_sandbox(host: Host, folder: Path) -> None:
    """Kill its processes and remove its cgroups."""
    groups = _cgroups(host, folder)
    processes.kill_left(files.read_file(str(folder / "first")), groups)
    for path in groups:
        processes.remove_cgroup(path)


def _cgroups(host: Host, folder: Path) -> list[str]:
    """The sandbox's cgroups. A record is believed only for names that are this sandbox's."""
    code = plans.cgroup_name(folder.name)
    own = (code, limits.agent_name(code))
    state = records.read(folder / "state.json", State)
    found = {f"{parent}/{name}" for parent in host.hierarchy.folders.values() for name in own}
    if state is not None:
        found |= {path for path in state.cgroups if os.path.basename(path) in own and ".." not in path}
    return sorted(found)
