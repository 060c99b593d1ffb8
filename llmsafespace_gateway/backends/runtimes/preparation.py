"""Making a runtime's environment: a venv, its packages, their bytecode, and programs that work inside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from llmsafespace_gateway.backends.base import RuntimeUnavailable
from llmsafespace_gateway.backends.runtimes.discovery import Interpreter
from llmsafespace_gateway.backends.runtimes.folders import made_once
from llmsafespace_gateway.backends.runtimes.prepared import PYTHON, RUNTIME
from llmsafespace_gateway.backends.runtimes.progress import Steps, log

LAYOUT = 1  # raised when what a prepared folder contains changes
PIP_TIMEOUT = 1800.0  # seconds for all packages of one runtime
TAIL = 15  # lines of a failed program that its error shows
RECORD = "runtime.json"
BASE_PACKAGES = (  # what kernels and package installation need; the configuration's packages come on top
    'ipykernel>=7; python_version >= "3.10"',
    'ipykernel>=6.29; python_version < "3.10"',
    "matplotlib-inline",
    "orjson",  # jupyter_client's messages, see the kernel's packing
    "pip",
)
DEFAULT_PACKAGES = ("numpy", "pandas", "matplotlib")
_COLLECTING = re.compile(r"^\s*Collecting (?P<name>[\w.\[\],-]+)")
_INSTALLING = re.compile(r"^\s*Installing collected packages: ")


class Record(msgspec.Struct, frozen=True):
    """What a prepared folder says about itself."""

    packages: tuple[str, ...]


class ProgramFailed(RuntimeUnavailable):
    """A program of the preparation failed; the message is its end."""


def inside_python(interpreter: Interpreter) -> str:
    """Where a sandbox has the interpreter's program."""
    return inside_path(interpreter, interpreter.path, PYTHON)


def inside_path(interpreter: Interpreter, path: str, root: str) -> str:
    """Where a sandbox has what the host has at `path`, when the interpreter's prefix is bound at `root`."""
    if interpreter.provided:
        return path
    return os.path.join(root, os.path.relpath(os.path.realpath(path), interpreter.prefix))


def key(interpreter: Interpreter, packages: Sequence[str]) -> str:
    """Names what a preparation depends on."""
    text = "\n".join(
        (str(LAYOUT), interpreter.path, interpreter.version, interpreter.prefix, *sorted(packages))
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_for(cache: Path, interpreter: Interpreter, packages: Sequence[str]) -> Path:
    """The folder that a preparation makes: `venv` works on the host, `bin` is for sandboxes."""
    return cache / f"python-{interpreter.version}-{key(interpreter, packages)}"


def site_packages(folder: Path, interpreter: Interpreter) -> Path:
    """The packages of a prepared folder."""
    return folder / "venv" / "lib" / f"python{interpreter.minor}" / "site-packages"


async def prepare(folder: Path, interpreter: Interpreter, packages: Sequence[str], steps: Steps) -> Record:
    """Make `folder` unless it is there. Raises RuntimeUnavailable with the end of what pip said."""
    async with made_once(folder) as staging:
        if staging is not None:
            log.info("preparing python:%s with %s", interpreter.minor, ", ".join(packages))
            try:
                await _make(staging, interpreter, packages, steps)
            except (ProgramFailed, OSError) as error:
                raise RuntimeUnavailable(
                    f"The environment of python:{interpreter.minor} could not be prepared. "
                    "Check the package list and that pip reaches its index, then try again.\n" + str(error),
                    {"runtime": f"python:{interpreter.minor}"},
                ) from error
    steps.finish()
    return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)


async def _make(staging: Path, interpreter: Interpreter, packages: Sequence[str], steps: Steps) -> None:
    steps.step("creating environment")
    venv = staging / "venv"
    await run([interpreter.path, "-I", "-m", "venv", "--without-pip", str(venv)], 60)
    python = str(venv / "bin" / "python")
    await _install(python, packages, steps)
    steps.step("compiling")
    site = site_packages(staging, interpreter)
    inside = inside_path(interpreter, interpreter.sites[0], PYTHON)
    await run(compile_command(python, site, inside), 600)
    programs_for_inside(venv / "bin", staging / "bin", inside_python(interpreter))
    names = await run([sys.executable, "-m", "pip", "--python", python, "list", "--format=freeze"], 60)
    record = Record(tuple(line for line in names if "==" in line))
    (staging / RECORD).write_bytes(msgspec.json.encode(record))


async def _install(python: str, packages: Sequence[str], steps: Steps) -> None:
    def line_read(line: str) -> None:
        if match := _COLLECTING.match(line):
            steps.found(1)
            steps.step(match["name"])
        elif _INSTALLING.match(line):
            steps.step(f"installing {line.count(',') + 1} packages")

    options = ["--no-input", "--no-compile", "--disable-pip-version-check", "--no-warn-script-location"]
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, "--prefer-binary"]
    await run([*command, "--progress-bar", "off", "--", *packages], PIP_TIMEOUT, line_read)


def compile_command(python: str, folder: Path, inside: str) -> list[str]:
    """Compile all of `folder`, which sandboxes have at `inside`.

    Unchecked: the folder is read-only there, and its times need not survive a copy. Files that are
    templates or tests for other versions do not compile, which is no failure.
    """
    options = ["-q", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    compiler = "import compileall, sys; compileall.main()"
    return [python, "-I", "-c", compiler, *options, "-s", str(folder), "-p", inside, str(folder)]


def programs_for_inside(source: Path, target: Path, python: str) -> None:
    """Copy the programs of a venv's `bin` so that they run with the interpreter at `python`."""
    target.mkdir()
    for name in ("python", "python3", os.path.basename(python)):
        if not (target / name).is_symlink():
            (target / name).symlink_to(python)
    for path in sorted(source.iterdir()):
        if path.is_symlink() or not path.is_file() or path.name.lower().startswith("activate"):
            continue
        content = path.read_bytes()
        copy = target / path.name
        copy.write_bytes(with_interpreter(content, f"{RUNTIME}/bin/python"))
        shutil.copymode(path, copy)


def with_interpreter(program: bytes, python: str) -> bytes:
    """A program made by pip, to be run by `python`. Programs of another kind stay as they are.

    pip writes `#!/path/python`, or `#!/bin/sh` with an exec line where that path is long.
    """
    head, newline, rest = program.partition(b"\n")
    if head.startswith(b"#!") and b"python" in head:
        return b"#!" + python.encode() + newline + rest
    if head == b"#!/bin/sh" and rest.startswith(b"'''exec' "):
        _, _, body = rest.partition(b"\n' '''\n")
        return b"#!" + python.encode() + b"\n" + body
    return program


def _environment() -> dict[str, str]:
    """This process's own, without what would lead pip or Python somewhere else."""
    elsewhere = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and name not in elsewhere
    }


async def run(
    command: Sequence[str], limit: float, line_read: Callable[[str], None] | None = None
) -> list[str]:
    """Run a program; its last lines (all of them when they are fewer than 1,000).

    Raises ProgramFailed with its end when it fails or takes longer than `limit` seconds.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1024 * 1024,
        env=_environment(),
    )
    lines: deque[str] = deque(maxlen=1000)
    try:
        async with asyncio.timeout(limit):
            assert process.stdout is not None  # noqa: S101  # it was asked for
            async for raw in process.stdout:
                lines.append(raw.decode(errors="replace").rstrip())
                if line_read is not None:
                    line_read(lines[-1])
            status = await process.wait()
    except TimeoutError:
        raise ProgramFailed("\n".join([*list(lines)[-TAIL:], f"(ended after {limit:.0f} seconds)"])) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise ProgramFailed("\n".join(list(lines)[-TAIL:]) or f"{command[0]} ended with status {status}")
    return list(lines)
