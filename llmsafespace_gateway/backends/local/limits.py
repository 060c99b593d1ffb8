"""What bounds a sandbox: cgroups (v1 or v2) where they are writable, resource limits everywhere."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import Resources

PROCESSES = 512  # processes and threads of one sandbox
OPEN_FILES = 4096
NICE = 10  # of code, below its agent, where no cgroup gives it a share of the processor
SLACK = 32 * 1024**2  # page tables, sockets and the like, charged to a cgroup but nobody's data
_ASK = 5.0  # seconds for the user's service manager
_PERIOD = 100_000  # microseconds
_START_CORES = 2.0  # an interpreter's start is ours, not its owner's
AGENT_MEMORY = 512 * 1024**2  # of an agent in a group of its own: far more than it uses
AGENT_PROCESSES = 128
_AGENT_SHARE = 0.2  # of a processor
_WARM_SHARE = 0.05  # of its full share of the processor, for a sandbox that nobody waits for
UNCHARGED = "seccomp, rlimit and watchdog"  # what bounds memory where no cgroup charges it
_V1 = ("memory", "pids", "cpu")


class Hierarchy(msgspec.Struct, frozen=True):
    """Where cgroups of sandboxes are made. `folders` maps each controller that is writable to its parent."""

    version: int  # 0: none
    folders: dict[str, str]

    @property
    def memory(self) -> bool:
        """True when memory is charged."""
        return "memory" in self.folders


NONE = Hierarchy(0, {})


def parse_own(text: str) -> dict[str, str]:
    """/proc/self/cgroup as controller → path; the v2 hierarchy's controller is ''. See cgroups(7)."""
    own: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return own


def parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """/proc/self/mountinfo as controller → (mount point, root of the mount); '' is v2. See proc(5)."""
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        names = [""] if kind[0] == "cgroup2" else kind[2].split(",")
        for name in names:
            found.setdefault(name, (fields[4], fields[3]))
    return found


def own_folder(controller: str, own: Mapping[str, str], mounts: Mapping[str, tuple[str, str]]) -> str | None:
    """The folder of this process's own cgroup for `controller`, where it can be seen."""
    if controller not in own or controller not in mounts:
        return None
    point, root = mounts[controller]
    relative = os.path.relpath(own[controller], root)
    return point if relative.startswith("..") else os.path.normpath(f"{point}/{relative}")


def discover(parent: str | None = None) -> Hierarchy:
    """The writable hierarchy below this process's cgroup, or below `parent` (a path within each mount).

    On v2, whose inner cgroups may hold no process, this moves the process into a leaf `gateway` of its own.
    """
    own = parse_own(Path("/proc/self/cgroup").read_text())
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    if parent is not None:
        own = dict.fromkeys(own, parent)
    found = {name: own_folder(name, own, mounts) for name in _V1}
    folders = {name: path for name, path in found.items() if path is not None and _writable(path)}
    if folders:
        return Hierarchy(1, folders)
    unified = own_folder("", own, mounts)
    if unified is not None and not _writable(unified) and parent is None and delegate(os.geteuid(), mounts):
        own = parse_own(Path("/proc/self/cgroup").read_text())
        unified = own_folder("", own, mounts)
    if unified is None or not _writable(unified):
        return NONE
    enabled = _enable(Path(unified))
    return Hierarchy(2, dict.fromkeys(enabled, unified)) if enabled else NONE


def delegation(uid: int, pid: int, mounts: Mapping[str, tuple[str, str]], busctl: str | None) -> list[str]:
    """The command by which an ordinary user's service manager moves process `pid` into a scope of its own.

    Its cgroup is then the user's to divide, as with `systemd-run --user --scope -p Delegate=yes`. Empty
    where there is nothing to ask: root has its cgroups or none, and version 1 is not delegated.
    """
    if uid == 0 or busctl is None or "" not in mounts or "memory" in mounts:
        return []
    manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"]
    properties = ["3", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "CollectMode", "s"]
    arguments = [f"llmsafespace-{pid}.scope", "fail", *properties, "inactive-or-failed", "0"]
    return [busctl, "--user", "call", *manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", *arguments]


def delegate(uid: int, mounts: Mapping[str, tuple[str, str]]) -> bool:
    """Ask for a delegated cgroup, and wait until this process is in it. False: there is none to be had."""
    asked = delegation(uid, os.getpid(), mounts, shutil.which("busctl"))
    if not asked:
        return False
    before = Path("/proc/self/cgroup").read_text()
    try:
        subprocess.run(asked, capture_output=True, timeout=_ASK, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    until = time.monotonic() + _ASK
    while Path("/proc/self/cgroup").read_text() == before:  # the answer comes before the move
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _writable(path: str) -> bool:
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)


def _enable(folder: Path) -> list[str]:
    """Hand the controllers of a v2 cgroup on to its children; the names of those that could be."""
    try:
        present = set((folder / "cgroup.controllers").read_text().split())
        wanted = [name for name in _V1 if name in present]
        control = folder / "cgroup.subtree_control"
        if not set(wanted) <= set(control.read_text().split()):
            if str(os.getpid()) in (folder / "cgroup.procs").read_text().split():
                leaf = folder / "gateway"
                leaf.mkdir(exist_ok=True)
                (leaf / "cgroup.procs").write_text(str(os.getpid()))
            control.write_text(" ".join(f"+{name}" for name in wanted))
        enabled = set(control.read_text().split())
    except OSError:
        return []
    return [name for name in wanted if name in enabled]


def shares(cpu: float) -> int:
    """The weight of `cpu` cores as v1 cpu.shares."""
    return max(2, int(1024 * cpu))


def weight(cpu: float) -> int:
    """The weight of `cpu` cores as v2 cpu.weight."""
    return max(1, min(10_000, int(100 * cpu)))


def _quota(cpu: float) -> int:
    return max(1000, int(cpu * _PERIOD))


def cgroups(hierarchy: Hierarchy, name: str, resources: Resources, warm: bool) -> list[dict[str, Any]]:
    """The cgroups of one sandbox as the keeper makes them: path, and (file, value, needed) to write.

    Memory is limited to memory and storage together, as pages of memory file systems are charged too; the
    agent's watchdog holds memory alone. A sandbox starts with at least `_START_CORES`, a `warm` one giving
    way to all others; `settle_cpu` sets what it was promised before any of its owner's code runs.
    """
    memory = resources.memory + resources.storage + SLACK
    quota = _quota(max(resources.cpu, _START_CORES))
    cpu = resources.cpu * (_WARM_SHARE if warm else 1.0)
    if hierarchy.version == 2:
        files: list[tuple[str, str, bool]] = []
        if "memory" in hierarchy.folders:
            files += [("memory.max", str(memory), True), ("memory.swap.max", "0", False)]
        if "pids" in hierarchy.folders:
            files.append(("pids.max", str(PROCESSES), True))
        if "cpu" in hierarchy.folders:
            files += [("cpu.max", f"{quota} {_PERIOD}", True), ("cpu.weight", str(weight(cpu)), False)]
        return [{"path": f"{next(iter(hierarchy.folders.values()))}/{name}", "files": files}]
    by_controller: dict[str, list[tuple[str, str, bool]]] = {
        "memory": [
            ("memory.limit_in_bytes", str(memory), True),
            ("memory.memsw.limit_in_bytes", str(memory), False),
            ("memory.kmem.tcp.limit_in_bytes", str(memory), False),  # else TCP's buffers are not charged
        ],
        "pids": [("pids.max", str(PROCESSES), True)],
        "cpu": [
            ("cpu.cfs_period_us", str(_PERIOD), False),
            ("cpu.cfs_quota_us", str(quota), False),
            ("cpu.shares", str(shares(cpu)), False),
        ],
    }
    merged: dict[str, list[tuple[str, str, bool]]] = {}
    for controller, folder in hierarchy.folders.items():  # two controllers may share one folder
        merged.setdefault(f"{folder}/{name}", []).extend(by_controller[controller])
    return [{"path": path, "files": files} for path, files in merged.items()]


def agent_cgroups(hierarchy: Hierarchy, name: str, room: int) -> list[dict[str, Any]]:
    """The cgroups of an agent beside its code's: it comes on top of what its owner asked for.

    It weighs little where the machine is busy, and may use one processor where there is one to spare: what
    it does is relay output. `room` is the size of its memory file system.
    """
    memory = AGENT_MEMORY + room
    values: dict[str, list[tuple[str, str, bool]]] = {
        "memory": [
            ("memory.limit_in_bytes", str(memory), True),
            ("memory.memsw.limit_in_bytes", str(memory), False),
        ],
        "pids": [("pids.max", str(AGENT_PROCESSES), True)],
        "cpu": [
            ("cpu.cfs_period_us", str(_PERIOD), False),
            ("cpu.cfs_quota_us", str(_PERIOD), False),
            ("cpu.shares", str(shares(_AGENT_SHARE)), False),
        ],
    }
    if hierarchy.version == 2:
        values = {
            "memory": [("memory.max", str(memory), True), ("memory.swap.max", "0", False)],
            "pids": values["pids"],
            "cpu": [
                ("cpu.max", f"{_PERIOD} {_PERIOD}", True),
                ("cpu.weight", str(weight(_AGENT_SHARE)), False),
            ],
        }
    merged: dict[str, list[tuple[str, str, bool]]] = {}
    for controller, folder in hierarchy.folders.items():
        merged.setdefault(f"{folder}/{agent_name(name)}", []).extend(values[controller])
    return [{"path": path, "files": files} for path, files in merged.items()]


def agent_name(name: str) -> str:
    """What the agent's cgroups are called where its code's are called `name`."""
    return f"{name}-agent"


def memory_folder(hierarchy: Hierarchy, name: str) -> str | None:
    """The cgroup that charges the sandbox's memory."""
    return f"{hierarchy.folders['memory']}/{name}" if hierarchy.memory else None


def oom_file(hierarchy: Hierarchy, name: str) -> str | None:
    """The file in it that counts OOM kills."""
    folder = memory_folder(hierarchy, name)
    if folder is None:
        return None
    return f"{folder}/memory.events" if hierarchy.version == 2 else f"{folder}/memory.oom_control"


def settle_cpu(hierarchy: Hierarchy, name: str, cpu: float, *, bound: bool = True) -> None:
    """Give a claimed sandbox its share of the processor. Raises OSError.

    Until it is `bound` it may use at least `_START_CORES`: the bind is our work, not its owner's, and would
    take minutes with a small share.
    """
    if "cpu" not in hierarchy.folders:
        return
    folder = f"{hierarchy.folders['cpu']}/{name}"
    quota = _quota(cpu if bound else max(cpu, _START_CORES))
    values = [("cpu.cfs_quota_us", str(quota)), ("cpu.shares", str(shares(cpu)))]
    if hierarchy.version == 2:
        values = [("cpu.max", f"{quota} {_PERIOD}"), ("cpu.weight", str(weight(cpu)))]
    try:
        for file, value in values:
            with open(f"{folder}/{file}", "w") as control:
                control.write(value)
    except FileNotFoundError:
        return  # the sandbox has just ended


def rlimits(resources: Resources, hierarchy: Hierarchy) -> list[tuple[int, int]]:
    """Limits set before the sandbox starts. RLIMIT_DATA is a coarse stop where memory is not charged."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_MEMLOCK, 1024**2),
        (resource.RLIMIT_MSGQUEUE, 64 * 1024),
        (resource.RLIMIT_FSIZE, resources.storage),
    ]
    if not hierarchy.memory:
        limits.append((resource.RLIMIT_DATA, resources.memory + 512 * 1024**2))
    return limits


def inside_rlimits() -> list[tuple[int, int]]:
    """Limits set on the sandbox's first process: processes are counted per user namespace only from there."""
    return [(resource.RLIMIT_NPROC, PROCESSES)]


def described(resources: Resources, hierarchy: Hierarchy) -> dict[str, Any]:
    """What is in force, for `isolation`."""
    enforced = "cgroup v2" if hierarchy.version == 2 else "cgroup v1"
    return {
        "memory": {"bytes": resources.memory, "by": enforced if hierarchy.memory else UNCHARGED},
        "storage": {"bytes": resources.storage, "by": "size of its memory file systems"},
        "processes": {"count": PROCESSES, "by": enforced if "pids" in hierarchy.folders else "rlimit"},
        "cpu": {"cores": resources.cpu, "by": enforced} if "cpu" in hierarchy.folders else None,
    }
