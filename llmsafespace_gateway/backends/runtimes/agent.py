"""The agent's own environment: its source and the packages it needs, for the gateway's interpreter."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
from packaging.requirements import Requirement

import llmsafespace_agent
import llmsafespace_protocol
from llmsafespace_gateway.backends.base import RuntimeUnavailable
from llmsafespace_gateway.backends.runtimes.discovery import Interpreter
from llmsafespace_gateway.backends.runtimes.folders import made_once, readable_by_all
from llmsafespace_gateway.backends.runtimes.preparation import compile_command, run
from llmsafespace_gateway.backends.runtimes.prepared import AGENT
from llmsafespace_gateway.backends.runtimes.progress import log

DISTRIBUTION = "llmsafespace-agent"
PROTOCOL = "llmsafespace-protocol"
LAUNCHER = "llmsafespace_agent/kernels/launcher"
_MAIN = '''"""Starts the agent from its own folder."""

import sys

from llmsafespace_agent.server.main import main

sys.exit(main())
'''


class Package(msgspec.Struct, frozen=True):
    """An installed distribution that the agent needs."""

    name: str
    version: str
    files: tuple[tuple[str, Path], ...]  # (path below site-packages, path on the host)


def needed() -> list[Package]:
    """What the agent's distribution requires, and what that requires, as installed beside the gateway.

    Raises RuntimeUnavailable when something is not installed or does not list its files.
    """
    packages: dict[str, Package] = {}
    waiting = [*_requirements(DISTRIBUTION), *_requirements(PROTOCOL)]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in packages and name != PROTOCOL:
            packages[name] = _package(name)
            waiting += _requirements(name)
    return [packages[name] for name in sorted(packages)]


def _requirements(name: str) -> Iterator[str]:
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _package(name: str) -> Package:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is None or not distribution.files:
        raise RuntimeUnavailable(
            f"The agent needs the package {name}, which is not properly installed beside the gateway; "
            f"reinstall it with: pip install --force-reinstall {name}"
        )
    located = ((str(file), Path(str(file.locate()))) for file in distribution.files if _is_wanted(file.parts))
    files = tuple((name, path) for name, path in located if path.is_file())
    return Package(name, distribution.version, files)


def _is_wanted(parts: tuple[str, ...]) -> bool:
    """Only what is imported: no programs beside site-packages, metadata, bytecode, tests or C headers."""
    return (
        ".." not in parts
        and not parts[0].endswith(".dist-info")
        and not {"__pycache__", "tests", "include"} & set(parts)
        and not parts[-1].endswith((".pyi", ".pxd", ".pyx", ".h"))
    )


def sources() -> list[tuple[str, Path]]:
    """The agent's own files and the protocol's: (path inside the agent's folder, path on the host)."""
    return [file for package in (llmsafespace_agent, llmsafespace_protocol) for file in _files_of(package)]


def _files_of(package: ModuleType) -> list[tuple[str, Path]]:
    root = Path(next(iter(package.__path__)))
    found = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [(f"{package.__name__}/{path.relative_to(root)}", path) for path in found]


def key(interpreter: Interpreter, files: list[tuple[str, Path]], packages: list[Package]) -> str:
    """Names what the agent's environment depends on: interpreter, the agent's source, package versions."""
    digest = hashlib.sha256(f"{interpreter.path} {interpreter.version} {_MAIN}".encode())
    for name, path in files:
        digest.update(f"\n{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    for package in packages:
        digest.update(f"\n{package.name}=={package.version}".encode())
    return digest.hexdigest()[:16]


async def prepare_agent(cache: Path, interpreter: Interpreter) -> Path:
    """The folder that sandboxes have at /opt/llmsafespace/agent; made again when the source has changed."""
    packages = await asyncio.to_thread(needed)
    files = await asyncio.to_thread(sources)
    folder = cache / f"agent-{interpreter.minor}-{key(interpreter, files, packages)}"
    async with made_once(folder) as staging:
        if staging is not None:
            log.info("preparing the agent's environment")
            for package in packages:
                files += package.files
            await asyncio.to_thread(_copy, files, staging)
            await run(compile_command(interpreter.path, staging, AGENT), 300)
    return folder


async def compile_launcher(folder: Path, interpreter: Interpreter) -> None:
    """Add bytecode of what runs in a runtime's interpreter, when that is another version than the agent's."""
    launcher = folder / LAUNCHER
    compiled = f"*.cpython-{interpreter.minor.replace('.', '')}.pyc"
    if not await asyncio.to_thread(lambda: any(launcher.rglob(compiled))):
        await run(compile_command(interpreter.path, launcher, f"{AGENT}/{LAUNCHER}"), 60)
        await asyncio.to_thread(readable_by_all, launcher)


def _copy(files: list[tuple[str, Path]], target: Path) -> None:
    for name, path in files:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (target / "__main__.py").write_text(_MAIN)
