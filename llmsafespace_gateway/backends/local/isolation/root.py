"""What a sandbox finds in its root: the steps that build it, in order.

Only the operating system's programs and libraries, a synthetic /etc, and the runtime; nothing of
/home, /root, /opt, /var, /srv or /usr/local (interpreters there excepted), not even read-only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

HOME = "/home/sandbox"
WORKSPACE = "/workspace"
RUN = "/run/llmsafespace"
EGRESS = f"{RUN}/egress"
CGROUP = f"{RUN}/cgroup"
UID = 1000
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec")
_SHARE = (
    "ca-certificates",
    "file",
    "fontconfig",
    "fonts",
    "git-core",
    "i18n",
    "locale",
    "mime",
    "misc",
    "perl",
    "perl5",
    "publicsuffix",
    "python-wheels",
    "tabset",
    "terminfo",
    "zoneinfo",
)
_PARENTS = ("/etc", "/home", "/opt", "/run", "/usr", "/usr/local", "/usr/share", "/var")
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_CODES = ("/opt/runtime", "/opt/python", "/etc/pip.conf")  # what only the code's interpreter needs
KERNELS_ROOM = 16 * 1024**2  # for kernels' sockets and logs, where the journals are elsewhere
_CA_BUNDLES = (CA_BUNDLE, "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem")


class Bind(msgspec.Struct, frozen=True):
    """A file or folder of the host, read-only."""

    source: str
    target: str


class Tmpfs(msgspec.Struct, frozen=True):
    """An empty memory file system of at most `size` bytes; `read_only` for one that only covers something."""

    target: str
    size: int
    mode: int = 0o755
    read_only: bool = False


class Folder(msgspec.Struct, frozen=True):
    """An empty folder."""

    target: str


class Link(msgspec.Struct, frozen=True):
    """A symbolic link at `path`."""

    points_to: str
    path: str


Step = Bind | Tmpfs | Folder | Link


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of each writable file system."""

    workspace: int
    home: int
    tmp: int
    shm: int
    run: int


def sizes(memory: int, storage: int, charged: bool) -> Sizes:
    """How `storage` is laid out.

    Where a memory cgroup charges every page (`charged`), each may take all of it, as the cgroup bounds the
    sum. Otherwise the parts together are at most `storage`.
    """
    if charged:
        return Sizes(
            workspace=storage,
            home=storage,
            tmp=storage,
            shm=memory // 2,
            run=min(storage // 4, 320 * 1024**2),
        )
    part = storage // 16
    return Sizes(workspace=8 * part, home=3 * part, tmp=2 * part, shm=part, run=2 * part)


def os_base(root: Path = Path("/")) -> list[Step]:
    """The operating system's programs and libraries below `root`, as they are laid out there."""
    steps: list[Step] = [Folder(path) for path in _PARENTS]
    for name in _USR:
        steps += _as_it_is(root, f"usr/{name}")
    for name in _SHARE:
        steps += _as_it_is(root, f"usr/share/{name}")
    for program in sorted((root / "usr/local/bin").glob("python3.*[0-9]")):  # as container images have it
        for name in (f"bin/{program.name}", f"lib/{program.name}", f"lib/lib{program.name}.so.1.0"):
            steps += _as_it_is(root, f"usr/local/{name}")
    for name in _TOP:
        steps += _as_it_is(root, name)
    return steps


def _as_it_is(root: Path, name: str) -> list[Step]:
    path = root / name
    if path.is_symlink():
        return [Link(os.readlink(path), f"/{name}")]
    return [Bind(str(path), f"/{name}")] if path.exists() else []


ETC_FILES = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    f"sandbox:x:{UID}:{UID}:sandbox:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": f"root:x:0:\nsandbox:x:{UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": "",
}


def etc(folder: Path, resolve: Callable[[str], str] = os.path.realpath) -> list[Step]:
    """The synthetic /etc: our own files, written to `folder`, and what programs of the host's OS need."""
    steps: list[Step] = [Bind(str(folder / name), f"/etc/{name}") for name in ETC_FILES]
    for bundle in _CA_BUNDLES:
        if os.path.exists(bundle):
            steps += [
                Bind(resolve(bundle), CA_BUNDLE),
                Link("certs/ca-certificates.crt", "/etc/ssl/cert.pem"),
            ]
            break
    for name in (
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/etc/alternatives",
        "/etc/fonts",
        "/etc/ssl/openssl.cnf",
    ):
        if os.path.exists(name):
            steps.append(Bind(resolve(name), name))
    steps.append(Link("/proc/self/mounts", "/etc/mtab"))
    return steps


def agent_layout(
    *,
    base: Iterable[Step],
    binds: Iterable[tuple[str, str]],
    masks: Iterable[str],
    room: Sizes,
    egress: str | None,
    cgroup: str | None,
) -> list[Step]:
    """The root of an agent in a sandbox of its own: OS, its interpreter, and a place for its journals.

    `binds` and `masks` are the runtime's, of which the code's parts are left out. `egress` and `cgroup` are
    host folders that it reads, where there are such.
    """
    steps: list[Step] = [*base, Tmpfs("/tmp", 1024**2, 0o1777), Tmpfs(RUN, room.run, 0o700)]  # noqa: S108
    steps += [Bind(source, target) for source, target in binds if not target.startswith(_CODES)]
    steps += [Tmpfs(path, 4096, read_only=True) for path in masks if not path.startswith(_CODES)]
    if egress is not None:
        steps.append(Bind(egress, EGRESS))
    if cgroup is not None:
        steps.append(Bind(cgroup, CGROUP))
    return steps


def layout(
    *,
    base: Iterable[Step],
    binds: Iterable[tuple[str, str]],
    masks: Iterable[str],
    folders: Iterable[str],
    room: Sizes,
    egress: str | None,
    cgroup: str | None,
) -> list[Step]:
    """All steps: OS and /etc (`base`), writable places, the runtime's binds and masks, our own folders.

    `egress` and `cgroup` are host folders that the agent reads, where there are such.
    """
    steps: list[Step] = [
        *base,
        Tmpfs("/dev/shm", room.shm, 0o1777),  # noqa: S108
        Tmpfs("/tmp", room.tmp, 0o1777),  # noqa: S108
        Link("/tmp", "/var/tmp"),  # noqa: S108
        Tmpfs(WORKSPACE, room.workspace),
        Tmpfs(HOME, room.home, 0o700),
        Tmpfs(RUN, room.run, 0o700),
    ]
    steps += [Bind(source, target) for source, target in binds]
    steps += [Tmpfs(path, 4096, read_only=True) for path in masks]
    steps += [Folder(path) for path in folders]
    if egress is not None:
        steps.append(Bind(egress, EGRESS))
    if cgroup is not None:
        steps.append(Bind(cgroup, CGROUP))
    return steps
