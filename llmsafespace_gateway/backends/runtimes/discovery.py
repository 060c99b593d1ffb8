"""Which CPython interpreters this machine has, and which of them serves which minor version."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import re
import signal
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

OLDEST = (3, 9)
PROBE_TIMEOUT = 20.0  # seconds
ALL_TIMEOUT = 60.0  # for all programs but the gateway's own interpreter; what is left then is left out
_LONGEST = 2**20  # bytes of a program's answer
_SYSTEM_PREFIXES = ("/usr", "/usr/local")
_NAME = re.compile(r"python3(\.\d+)?")
_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/python*/bin", "/opt/conda/bin")
_HOME_FOLDERS = (".pyenv/versions/*/bin", ".local/share/uv/python/*/bin")

# The libraries come from the process's own map, as that is what the loader found, by whatever rule.
_PROBE = """
import json, os, site, sys, sysconfig
maps = open("/proc/self/maps").read().split("\\n")
paths = {line.split(None, 5)[5] for line in maps if len(line.split(None, 5)) == 6}
print(json.dumps({
    "implementation": sys.implementation.name,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "release": sys.version_info[3],
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "virtual": sys.prefix != sys.base_prefix,
    "base": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "prefix": os.path.realpath(sys.base_prefix),
    "sites": [os.path.realpath(p) for p in dict.fromkeys(site.getsitepackages()) if os.path.isdir(p)],
    "libraries": sorted(p for p in paths if os.path.basename(p).startswith("libpython")),
}))
"""


log = logging.getLogger("llmsafespace.runtimes")


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """A CPython installation. `sites` are its own site-packages folders, `libraries` its shared libpython."""

    path: str
    version: str  # as 3.11.7
    prefix: str
    sites: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    @property
    def minor(self) -> str:
        """As 3.11."""
        return ".".join(self.version.split(".")[:2])

    @property
    def provided(self) -> bool:
        """True when it belongs to the system's own programs, which a backend provides anyway."""
        return self.prefix in _SYSTEM_PREFIXES


class _Probed(msgspec.Struct, frozen=True, kw_only=True):
    implementation: str
    version: str
    release: str
    free_threaded: bool
    virtual: bool
    base: str
    prefix: str
    sites: tuple[str, ...]
    libraries: tuple[str, ...]


def version_key(version: str) -> tuple[int, ...]:
    """A version of numbers and dots as something that sorts."""
    return tuple(int(part) for part in version.split("."))


def candidates(environ: Mapping[str, str], home: Path, executable: str) -> list[str]:
    """Programs that may be interpreters, links resolved, in order of preference, each once.

    Scripts (as the shims of version managers are) are left out: what they start is found itself. So is
    whatever cannot be read, is broken or is no file: other people's folders do not stop a gateway.
    """
    folders = [entry for entry in environ.get("PATH", "").split(os.pathsep) if entry.startswith("/")]
    patterns = [*_FOLDERS, *(f"{glob.escape(str(home))}/{pattern}" for pattern in _HOME_FOLDERS)]
    if environ.get("PYENV_ROOT", "").startswith("/"):
        patterns.insert(len(_FOLDERS), f"{glob.escape(environ['PYENV_ROOT'])}/versions/*/bin")
    for pattern in patterns:
        folders += sorted(glob.glob(pattern))  # what cannot be read matches nothing
    found = [os.path.realpath(executable)]
    for folder in dict.fromkeys(folders):
        found += [os.path.realpath(path) for path in _named_python(folder)]
    return [path for path in dict.fromkeys(found) if _is_program(path)]


def _named_python(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.path for entry in entries if _NAME.fullmatch(entry.name))
    except (OSError, ValueError):
        return []


def _is_program(path: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return os.access(path, os.X_OK) and file.read(4) == b"\x7fELF"
    except (OSError, ValueError):
        return False


async def probe(path: str) -> Interpreter | None:
    """Ask the program at `path` what it is; None when it is no usable CPython."""
    probed = await _ask(path)
    if probed is not None and probed.virtual:
        path = probed.base
        probed = await _ask(path)
    if (
        probed is None
        or probed.virtual
        or probed.implementation != "cpython"
        or probed.free_threaded
        or probed.release != "final"
        or version_key(probed.version)[:2] < OLDEST
        or not probed.sites
    ):
        return None
    return Interpreter(
        path=probed.base,
        version=probed.version,
        prefix=probed.prefix,
        sites=probed.sites,
        libraries=probed.libraries,
    )


async def _ask(path: str) -> _Probed | None:
    out = await _output(path, "-I", "-c", _PROBE)
    try:
        return None if out is None else msgspec.json.decode(out, type=_Probed)
    except msgspec.DecodeError:
        return None


async def _output(*command: str) -> bytes | None:
    """What a program prints; None when it cannot be started or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    out = b""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            while piece := await process.stdout.read(65536):
                out += piece
                if len(out) > _LONGEST:
                    return None
            await process.wait()
        return out
    except TimeoutError:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has left behind
        await process.wait()


def one_per_minor(found: Iterable[Interpreter], own: Interpreter) -> dict[str, Interpreter]:
    """The interpreter that serves each minor version: the gateway's own, else the newest patch release."""
    chosen: dict[str, Interpreter] = {}
    for interpreter in found:
        best = chosen.get(interpreter.minor)
        if best is None or version_key(interpreter.version) > version_key(best.version):
            chosen[interpreter.minor] = interpreter
    chosen[own.minor] = own
    return dict(sorted(chosen.items(), key=lambda item: version_key(item[0])))


async def bash_version() -> str | None:
    """The version of this machine's bash, as 5.2; None when it has none."""
    out = await _output("/bin/bash", "--norc", "-c", 'echo "${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]}"')
    return out.decode(errors="replace").strip() or None if out is not None else None


async def own_interpreter() -> Interpreter:
    """The base interpreter of this process. Raises RuntimeError when it cannot describe itself."""
    base: str = getattr(sys, "_base_executable", None) or sys.executable
    own = await probe(base)
    if own is None:
        raise RuntimeError(
            f"The gateway's own interpreter {base} is no released CPython with a site-packages folder; "
            "install the gateway with a standard CPython 3.11 or later"
        )
    return own


async def discover() -> tuple[Interpreter, dict[str, Interpreter]]:
    """The gateway's own interpreter, and the one that serves each minor version."""
    own = await own_interpreter()
    paths = await asyncio.to_thread(candidates, os.environ, _home(), own.path)
    found = [own]
    loop = asyncio.get_running_loop()
    until = loop.time() + ALL_TIMEOUT
    for start in range(0, len(paths), 4):
        if loop.time() > until:
            log.warning("interpreters took too long to answer; not asked: %s", ", ".join(paths[start:][:20]))
            break
        probed = await asyncio.gather(*(probe(path) for path in paths[start : start + 4]))
        found += [interpreter for interpreter in probed if interpreter is not None]
    return own, one_per_minor(found, own)


def _home() -> Path:
    """The user's home; one that nobody has where there is none, as in a container with a made-up uid."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nonexistent")
