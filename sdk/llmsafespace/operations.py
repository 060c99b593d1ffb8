"""What a sandbox offers once it has started: code, commands, packages, files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, overload

from llmsafespace import requests
from llmsafespace.clients import Client
from llmsafespace.commands import AsyncCommand, AsyncCommands, Input
from llmsafespace.contexts import AsyncContexts, ContextLike, id_of
from llmsafespace.errors import SandboxEnded, SandboxError
from llmsafespace.event_stream import followed
from llmsafespace.files import AsyncFiles, FileList
from llmsafespace.leaving import Leaving
from llmsafespace.models import CommandResult, FileInfo, SandboxInfo, Start
from llmsafespace.outputs import AsyncOutput, Callbacks, SandboxWarning, Stdin
from llmsafespace.results import Execution
from llmsafespace.runner import Code, Runner, RunOptions
from llmsafespace.transport import API, Transport, segment

Source = str | Path
Warnings = list[str]
INTERRUPT_SOON = 10.0  # seconds until an interrupt is asked for on another connection


class SandboxOperations:
    """The part of AsyncSandbox that needs a started sandbox."""

    _client: Client | None = None
    _info: SandboxInfo | None = None

    def _enter(self, client: Client, info: SandboxInfo, *, fresh: bool = False) -> None:
        transport = client.transport
        self._client, self._info = client, info
        self._path = f"{API}/sandboxes/{segment(info.id)}"
        self._contexts = AsyncContexts(transport, info.id, info.kernel_id)
        self._files = AsyncFiles(transport, info.id)
        self._leaving = Leaving(transport, self._path)
        self._commands = AsyncCommands(transport, info.id, self._leaving)
        self._runner = Runner(transport, info, self._contexts, self._leaving)
        if fresh and info.kernel_id is not None:
            self._runner.stream(info.kernel_id, fresh=True)
        for warning in info.warnings:
            warnings.warn(warning, SandboxWarning, stacklevel=2)

    # -- what it is

    @property
    def info(self) -> SandboxInfo:
        """How the gateway described the sandbox at its start. Raises SandboxError before the start."""
        if self._info is None:
            raise SandboxError("the sandbox has not been started: await it, or use `async with`")
        return self._info

    @property
    def id(self) -> str:
        """Its id, as `sb-…`."""
        return self.info.id

    @property
    def runtime(self) -> str:
        """The runtime in use, which may be another version than the one requested (see `warnings`)."""
        return self.info.runtime

    @property
    def created_at(self) -> datetime:
        """When it was created."""
        return self.info.created_at

    @property
    def start(self) -> Start:
        """Whether it came from a warm pool, and if not, why."""
        return self.info.start

    @property
    def warnings(self) -> Warnings:
        """How the sandbox differs from the request."""
        return self.info.warnings

    @property
    def files(self) -> AsyncFiles:
        """Its files."""
        self.transport  # noqa: B018  (raises when closed)
        return self._files

    @property
    def commands(self) -> AsyncCommands:
        """Its background commands."""
        self.transport  # noqa: B018
        return self._commands

    @property
    def contexts(self) -> AsyncContexts:
        """Its kernels."""
        self.transport  # noqa: B018
        return self._contexts

    @property
    def transport(self) -> Transport:
        """The connection to the gateway. Raises SandboxError before the start, SandboxEnded after the end."""
        info = self.info
        if self._client is None:
            raise SandboxEnded(
                f"sandbox {info.id} was terminated or closed here", code="gone", details={"end": "terminated"}
            )
        return self._client.transport

    # -- code

    async def run_code(
        self,
        code: Code,
        *,
        language: str | None = None,
        context: ContextLike | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        on_stdout: Callable[[str], Any] | None = None,
        on_stderr: Callable[[str], Any] | None = None,
        on_result: Callable[[Any], Any] | None = None,
        on_error: Callable[[Any], Any] | None = None,
        on_comm: Callable[[Any], Any] | None = None,
        stdin: Stdin | None = None,
    ) -> Execution:
        """Run code in a context (the default one) and return its output, results and error.

        `code` is text, or an object with text in it: of LangChain's messages and results (`.content`,
        `.text`, `.generations`) the text is taken. Raises TypeError for others.
        `language` picks a context of that language, made on first use; `env` holds for this run only;
        `stdin` (text, lines, or a function of the prompt) answers `input()`; `on_comm` hears widgets.
        Callbacks may be coroutine functions.
        Raises SandboxError only when the run itself could not be carried out.
        """
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error, stdin, on_comm)
        options = RunOptions(language, context, timeout, env, stdin is not None)
        return await self.output(code, options).finish(callbacks if callbacks.any else None)

    def stream_code(
        self,
        code: Code,
        *,
        language: str | None = None,
        context: ContextLike | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AsyncOutput:
        """The text output of code (stdout, stderr, traceback) as it arrives; the code starts when iterated.

        Its `.events()` gives typed events instead. Leaving the iteration early interrupts the code.
        """
        return self.output(code, RunOptions(language, context, timeout, env))

    def output(self, code: Code, options: RunOptions) -> AsyncOutput:
        """The output of code with these options; the code starts when iterated."""
        self.transport  # noqa: B018
        return self._runner.output(code, options)

    def attach(self, execution_id: str, after: int = 0) -> AsyncOutput:
        """The output of an execution of this or another client, from the event after number `after` on.

        Leaving it early does not stop the execution.
        """
        return followed(self.transport, self.id, execution_id, after=after)

    async def interrupt(self, context: ContextLike | None = None) -> None:
        """Interrupt what runs in a context (the default one); its variables stay."""
        target = await self.contexts.default_id() if context is None else id_of(context)
        path = f"/api/kernels/{segment(target)}/interrupt"
        await self.transport.request("POST", path, repeatable=True, soon=INTERRUPT_SOON)

    # -- commands and packages

    @overload
    async def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
        background: Literal[False] = False,
    ) -> CommandResult: ...

    @overload
    async def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
        background: Literal[True],
    ) -> AsyncCommand: ...

    async def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
        background: bool = False,
    ) -> CommandResult | AsyncCommand:
        """Run a shell command and wait for its end; with `background`, return the running command at once.

        A list is a program and its arguments, quoted for the shell. `stdin` is text or bytes.
        Raises SandboxEnded when the sandbox ends first.
        """
        if background:
            return await self.commands.start(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        output = self.commands.stream(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        return await self.commands.finish(output)

    def stream_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
    ) -> AsyncOutput:
        """The output of a shell command as it arrives.

        Leaving the iteration early interrupts the command, and kills it where that does not end it.
        """
        return self.commands.stream(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)

    async def install(
        self, packages: str | Iterable[str], manager: str | None = None, *, timeout: float | None = None
    ) -> CommandResult:
        """Install packages with the runtime's package manager. Raises SandboxError when that fails."""
        return await self.commands.install(requests.package_list(packages), manager, timeout)

    # -- files

    async def upload_file(
        self,
        remote: str,
        local_path: Source | None = None,
        content: str | bytes | IO[bytes] | None = None,
        *,
        on_progress: Callable[[int], Any] | None = None,
    ) -> FileInfo:
        """Write a local file, or `content`, to `remote` (relative to /workspace). Streamed, of any size."""
        return await self.files.upload(remote, local_path, content, on_progress=on_progress)

    async def download_file(
        self,
        remote: str,
        local_path: Source | None = None,
        *,
        on_progress: Callable[[int], Any] | None = None,
    ) -> bytes | Path:
        """The content of a file; with `local_path` the content is written there and the path returned."""
        return await self.files.download(remote, local_path, on_progress=on_progress)

    async def list_files(self, path: str = "/workspace", *, depth: int = 1) -> FileList:
        """The files and folders in a folder, `depth` levels deep."""
        return await self.files.list(path, depth=depth)
