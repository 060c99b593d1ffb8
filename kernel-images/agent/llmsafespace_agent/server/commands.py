"""The commands of the sandbox: shell lines, programs, package installations."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.server import validation
from llmsafespace_agent.server.command import Command
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.errors import AgentError, conflict, invalid, not_found
from llmsafespace_agent.server.journal import Journal
from llmsafespace_protocol.requests import CommandStart, PackagesInstall

RUNNING = 64
KEPT = 256
_MEMORY = 512 * 1024
_DISK = 32 * 1024 * 1024
_MANAGERS = {
    "uv": ["uv", "pip", "install"],
    "conda": ["conda", "install", "--yes"],
    "mamba": ["mamba", "install", "--yes"],
    "npm": ["npm", "install"],
}


class Commands:
    """All commands by id; the oldest that have ended go when there are too many.

    One that is still being started has its id, so that nobody else gets that, but is not to be found yet:
    who is told of a command can rely on its process.
    """

    def __init__(
        self,
        inside: Inside,
        folder: Path,
        workspace: str,
        environment: Callable[[], dict[str, str]],
        manager: list[str],
        deadlines: Deadlines,
    ) -> None:
        self._inside = inside
        self._folder = folder
        self._workspace = workspace
        self._environment = environment
        self._manager = manager
        self._deadlines = deadlines
        self._commands: dict[str, Command] = {}

    def __iter__(self) -> Iterator[Command]:
        return iter([command for command in self._commands.values() if command.begun])

    @property
    def running(self) -> list[Command]:
        """Those whose process lives."""
        return [command for command in self._commands.values() if command.running]

    def get(self, command_id: str) -> Command:
        """The command of this id. Raises AgentError(not_found)."""
        command = self._commands.get(command_id)
        if command is None or not command.begun:
            raise not_found(f"there is no command {command_id!r} in this sandbox", id=command_id)
        return command

    async def start(self, request: CommandStart) -> Command:
        """Start a command; the same request again gets the same one. Raises AgentError.

        The id is taken before the first await, so that two equal requests at once start one command.
        """
        known = self._repeated(request.id, _digest(request))
        if known is not None:
            await known.started()
            return known
        argv, line = argv_of(request)
        given = validation.input_bytes(request.stdin or "", request.stdin_encoding)
        cwd = validation.working_folder(request.cwd, self._workspace, self._inside)
        timeout = validation.duration(request.timeout, "timeout")
        env = {**self._environment(), **validation.environment(request.env)}
        command = self._make(request.id, line, _digest(request))
        wants_stdin = request.stdin is not None or request.keep_stdin
        self._commands[request.id] = command
        try:
            await command.start(argv, cwd, env, stdin=wants_stdin, timeout=timeout)
        except BaseException:
            if self._commands.get(request.id) is command:
                del self._commands[request.id]
            command.journal.close()
            raise
        if wants_stdin:
            command.write(given, eof=not request.keep_stdin)
        return command

    async def install(self, request: PackagesInstall) -> tuple[Command, bool]:
        """Install packages; also whether this very call started it."""
        known = self._commands.get(request.id)
        argv = installation(self._manager, request)
        command = await self.start(CommandStart(id=request.id, argv=argv, timeout=request.timeout))
        return command, known is None

    def write(self, command_id: str, data: bytes, eof: bool) -> Command:
        """To a command's standard input. Raises AgentError."""
        command = self.get(command_id)
        command.write(data, eof)
        return command

    def signal(self, command_id: str, name: str) -> Command:
        """Signal a command's process group. Raises AgentError for an unknown signal."""
        command = self.get(command_id)
        command.signal(signal_named(name))
        return command

    def end_all(self, end: str) -> None:
        """Kill everything, with this end."""
        for command in self.running:
            command.kill(end)

    def close(self) -> None:
        """Give everything back."""
        for command in self:
            command.close()

    def _repeated(self, command_id: str, digest: bytes) -> Command | None:
        validation.identifier(command_id, "the command's id")
        known = self._commands.get(command_id)
        if known is not None and known.digest != digest:
            raise conflict(f"command id {command_id!r} is in use for another command", id=command_id)
        return known

    def _make(self, command_id: str, line: str, digest: bytes) -> Command:
        if len(self.running) >= RUNNING:
            raise AgentError(
                "quota_exceeded", f"{RUNNING} commands are running already; wait, or end one of them"
            )
        while len(self._commands) >= KEPT:
            oldest = next(command for command in self if not command.running)
            self._commands.pop(oldest.id).close()
        return Command(
            self._inside, command_id, line, digest, Journal(self._folder, _MEMORY, _DISK), self._deadlines
        )


def argv_of(request: CommandStart) -> tuple[list[str], str]:
    """What to execute, and how to show it. Raises AgentError when it is not one of line and argv."""
    if (request.command is None) == (request.argv is None):
        raise invalid("give either command (a shell line) or argv")
    if request.command is not None:
        line = validation.argument(request.command, "command")
        shell = "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh"
        return [shell, "-c", line], line
    argv = [validation.argument(word, "argv") for word in request.argv or []]
    if not argv or not argv[0]:
        raise invalid("argv must name a program")
    return argv, shlex.join(argv)


def installation(manager: list[str], request: PackagesInstall) -> list[str]:
    """The command that installs packages. Raises AgentError for what cannot be a package's name."""
    if not 1 <= len(request.packages) <= 200:
        raise invalid("packages must name 1 to 200 packages")
    for package in request.packages:
        validation.text(package, "packages", 500)
        if not package.strip() or package.startswith("-"):
            raise invalid(f"packages: {package[:80]!r} is no package")
    if request.manager is None or request.manager in manager or request.manager == "pip":
        base = manager
    elif request.manager in _MANAGERS:
        base = _MANAGERS[request.manager]
    else:
        raise invalid(f"manager must be one of pip, {', '.join(_MANAGERS)}")
    return [*base, *request.packages]


def signal_named(name: str) -> signal.Signals:
    """The signal of this name (`SIGTERM` or `TERM`). Raises AgentError."""
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    try:
        return signal.Signals[full]
    except KeyError:
        raise invalid(f"{name[:40]!r} is no signal; SIGINT, SIGTERM and SIGKILL are") from None


def _digest(request: CommandStart) -> bytes:
    return hashlib.sha256(msgspec.json.encode(request, order="deterministic")).digest()
