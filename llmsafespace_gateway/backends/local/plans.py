"""What a sandbox is made of, and what its keeper is told: pure functions of host, runtime and wish."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import Resources
from llmsafespace_gateway.backends.local import limits
from llmsafespace_gateway.backends.local.isolation import root
from llmsafespace_gateway.backends.local.isolation.command import (
    CLOCK_FD,
    LISTEN_FD,
    SECCOMP_FD,
    STAGE,
    STATUS_FD,
    WORKER_FD,
    Staged,
    command,
    stage,
)
from llmsafespace_gateway.backends.runtimes.prepared import PreparedRuntime
from llmsafespace_protocol.configuration import (
    EXIT_STATUS,
    AgentConfig,
    EgressForward,
    KernelKind,
    Listen,
    SandboxLimits,
    Script,
)

FIRST_UID = 1_900_000_000  # host uids of sandboxes, when the gateway runs as root
UIDS = 65_536
_RUN_RESERVE = 16 * 1024**2  # of the run file system, for everything but the journal


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """This machine, as the backend found it. `bwrap` None: no isolation at all."""

    data_dir: Path
    python: str
    bwrap: str | None
    bwrap_libraries: str | None = None  # the folder of those that it brought along
    is_root: bool
    hierarchy: limits.Hierarchy
    base: tuple[root.Step, ...] = ()
    seccomp: Path | None = None
    uid_locks: Path | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that must be settled before a sandbox starts; what can be bound late is not here."""

    runtime: PreparedRuntime
    resources: Resources
    security_level: str = "standard"
    preload_packages: tuple[str, ...] = ()
    preload_scripts: tuple[tuple[str, str], ...] = ()
    env: dict[str, str] = {}  # such as only works from the start

    @property
    def digest(self) -> str:
        """The same for the same recipe."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]


def cgroup_name(name: str) -> str:
    """What the sandbox's cgroups are called."""
    return f"llmsafespace-{name}"


def agent_config(host: Host, recipe: Recipe, name: str, token: str, egress: bool) -> AgentConfig:
    """What the agent is told before anybody has claimed it."""
    runtime = recipe.runtime
    isolated = host.bwrap is not None
    folder = host.data_dir / "sandboxes" / name
    room = _room(host, recipe)
    kernels: tuple[KernelKind, ...] = runtime.kernels if isolated else runtime.host.kernels
    env = dict(runtime.env) if isolated else {**runtime.host.env, "HOME": str(folder / "home")}
    return AgentConfig(
        name=name,
        token=token,
        listen=Listen(fd=LISTEN_FD),
        worker=WORKER_FD if apart(host, runtime) else None,
        clock=CLOCK_FD,
        kernels=list(kernels),
        preload_packages=list(recipe.preload_packages),
        preload_scripts=[Script(title, content) for title, content in recipe.preload_scripts],
        env={**env, **recipe.env},
        workspace=root.WORKSPACE if isolated else str(folder / "workspace"),
        run_dir=root.RUN if isolated else str(folder / "run"),
        journal_disk=max(0, min(256 * 1024**2, room.run - _RUN_RESERVE)),
        egress=EgressForward(unix=f"{root.EGRESS}/proxy.sock") if egress and isolated else None,
        limits=SandboxLimits(
            memory_bytes=recipe.resources.memory,
            processes=limits.PROCESSES if isolated and not apart(host, runtime) else None,
            cgroup=root.CGROUP if isolated and host.hierarchy.memory else None,
            nice=limits.NICE if "cpu" not in host.hierarchy.folders else 0,
        ),
        package_manager=list(runtime.package_manager if isolated else runtime.host.package_manager),
    )


def apart(host: Host, runtime: PreparedRuntime) -> bool:
    """Whether agent and code are in a sandbox each."""
    return host.bwrap is not None and bool(runtime.worker_argv)


def _room(host: Host, recipe: Recipe) -> root.Sizes:
    return root.sizes(recipe.resources.memory, recipe.resources.storage, host.hierarchy.memory)


def plan(
    host: Host, recipe: Recipe, name: str, config: AgentConfig, *, warm: bool, listen: int, lifeline: int
) -> dict[str, Any]:
    """The keeper's plan; `listen` and `lifeline` are the numbers of descriptors that it inherits.

    `warm`: nobody waits for this sandbox, so that it gives way to others.
    """
    folder = host.data_dir / "sandboxes" / name
    group = cgroup_name(name)
    built = _common(host, folder, listen, lifeline) | {
        "config": msgspec.json.encode(config),
        "oom_file": limits.oom_file(host.hierarchy, group),
    }
    cgroups = limits.cgroups(host.hierarchy, group, recipe.resources, warm)
    if host.bwrap is None:
        side = {
            "argv": list(recipe.runtime.host.agent_argv),
            "env": {**config.env, "TMPDIR": str(folder / "tmp")},
            "cwd": config.workspace,
            "staged": None,
            "cgroups": cgroups,
        }
        return built | {"sides": [side]}
    return built | {
        "sides": _sides(host, host.bwrap, recipe, group, cgroups, config),
        "rlimits": limits.rlimits(recipe.resources, host.hierarchy),
        "inside_rlimits": limits.inside_rlimits(),
    }


def _sides(
    host: Host, bwrap: str, recipe: Recipe, group: str, cgroups: list[dict[str, Any]], config: AgentConfig
) -> list[dict[str, Any]]:
    """The code's sandbox, and then, where they are apart, its agent's."""
    runtime, room = recipe.runtime, _room(host, recipe)
    seen: dict[str, str | None] = {  # by the agent
        "egress": str(host.data_dir / "sandboxes" / config.name / "egress") if config.egress else None,
        "cgroup": limits.memory_folder(host.hierarchy, group),
    }
    together = not apart(host, runtime)
    steps = root.layout(
        base=host.base,
        binds=runtime.binds,
        masks=runtime.masks,
        folders=runtime.folders,
        room=room if together else msgspec.structs.replace(room, run=min(room.run, root.KERNELS_ROOM)),
        **(seen if together else {"egress": None, "cgroup": None}),
    )
    argv = runtime.agent_argv if together else (*runtime.worker_argv, str(WORKER_FD))
    sides = [_isolated(host, bwrap, steps, argv) | {"cgroups": cgroups}]
    if not together:
        steps = root.agent_layout(base=host.base, binds=runtime.binds, masks=runtime.masks, room=room, **seen)
        own = limits.agent_cgroups(host.hierarchy, group, room.run)
        sides.append(_isolated(host, bwrap, steps, runtime.agent_argv, "/") | {"cgroups": own})
    return sides


def trial(host: Host, folder: Path, listen: int, lifeline: int) -> dict[str, Any]:
    """A plan that only runs `true`, in a sandbox like any other."""
    least = root.Sizes(workspace=4096, home=4096, tmp=4096, shm=4096, run=4096)
    steps = root.layout(base=host.base, binds=(), masks=(), folders=(), room=least, egress=None, cgroup=None)
    assert host.bwrap is not None  # noqa: S101  # only an isolating host is tried
    built = _common(host, folder, listen, lifeline)
    side = _isolated(host, host.bwrap, steps, ("/usr/bin/true",)) | {"cgroups": []}
    return built | {"sides": [side], "trial": True}


def _common(host: Host, folder: Path, listen: int, lifeline: int) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "data_dir": str(host.data_dir),
        "ended": str(host.data_dir / "ended"),
        "bwrap": host.bwrap,
        "config": b"",
        "listen": listen,
        "lifeline": lifeline,
        "listen_fd": LISTEN_FD,
        "seccomp_fd": SECCOMP_FD,
        "status_fd": STATUS_FD,
        "clock_fd": CLOCK_FD,
        "worker_fd": WORKER_FD,
        "oom_file": None,
        "exit_status": {status: word for word, status in EXIT_STATUS.items()},
        "trial": False,
        "stage": STAGE,
        "uids": (str(host.uid_locks), FIRST_UID, UIDS) if host.uid_locks is not None else None,
        "seccomp": str(host.seccomp),
        "rlimits": [],
        "inside_rlimits": [],
    }


def _isolated(
    host: Host, bwrap: str, steps: list[root.Step], argv: Sequence[str], cwd: str = root.WORKSPACE
) -> dict[str, Any]:
    staged: list[Staged] | None = None
    own_env: dict[str, str] = {}
    if host.is_root:
        steps, staged, bwrap = stage(steps, bwrap)
        if host.bwrap_libraries is not None:  # found relative to the program, which is elsewhere now
            staged.append(Staged(host.bwrap_libraries, "lib"))
            own_env = {"LD_LIBRARY_PATH": f"{STAGE}/lib"}
    env = {"PATH": "/usr/bin:/bin", "HOME": root.HOME, "LANG": "C.UTF-8"}
    return {
        "argv": command(bwrap, steps, env, cwd, argv),
        "env": own_env,
        "cwd": "/",
        "staged": None if staged is None else [(each.source, each.name) for each in staged],
    }


def isolation(host: Host, recipe: Recipe, uid: int, egress: bool) -> dict[str, Any]:
    """What is in force for a sandbox, truthfully."""
    if host.bwrap is None:
        return {
            "backend": "none",
            "message": "this sandbox is NOT isolated: its code can do whatever the gateway's user can",
        }
    return {
        "backend": "bubblewrap",
        "securityLevel": recipe.security_level,
        "userNamespace": True,
        "uid": uid,
        "ownUid": uid != os.getuid(),
        "seccomp": host.seccomp is not None,
        "noNewPrivileges": True,
        "readOnlyRoot": True,
        "network": "egress proxy" if egress else "none",
        "limits": limits.described(recipe.resources, host.hierarchy),
    }
