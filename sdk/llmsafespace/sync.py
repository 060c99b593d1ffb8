"""Sandbox: the synchronous twin of AsyncSandbox, which does the work on an event loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, overload

from llmsafespace.contexts import ContextLike
from llmsafespace.files import FileList
from llmsafespace.models import CommandResult, FileInfo, SandboxInfo, SandboxStatus, Start
from llmsafespace.outputs import Callbacks, Stdin
from llmsafespace.portal import portal
from llmsafespace.requests import Content, NetworkAccess
from llmsafespace.results import Execution
from llmsafespace.runner import RunOptions
from llmsafespace.sandbox import AsyncSandbox, InfoList, Source, Warnings
from llmsafespace.sync_parts import Command, Commands, Contexts, Files, Output


class Sandbox:
    """A sandbox: an isolated place with a real Jupyter kernel in it. Usable from any thread.

    `timeout` (seconds) is the longest that one execution may run. The sandbox ends with `terminate()`, at
    the end of a `with` block, after `idle_timeout` seconds with nothing running and nobody connected, or at
    `max_lifetime`. Without `api_url`, `api_key` and their environment variables a private gateway is started.
    """

    def __init__(
        self,
        runtime: str = "python:3.10",
        api_key: str | None = None,
        security_level: str = "standard",
        timeout: float | None = 300,
        resources: Mapping[str, Any] | None = None,
        network_access: NetworkAccess = None,
        api_url: str | None = None,
        use_warm_pool: bool = True,
        *,
        warm_pool: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, Content] | None = None,
        packages: str | Iterable[str] | None = None,
        cwd: str | None = None,
        metadata: Mapping[str, str] | None = None,
        idle_timeout: float | None = 600,
        max_lifetime: float | None = None,
    ) -> None:
        wish = AsyncSandbox(
            runtime,
            api_key,
            security_level,
            timeout,
            resources,
            network_access,
            api_url,
            use_warm_pool,
            warm_pool=warm_pool,
            env=env,
            files=files,
            packages=packages,
            cwd=cwd,
            metadata=metadata,
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
        )
        self._portal = portal()
        self._sandbox = self._portal.run(wish.begin())

    # -- beginning and end

    @classmethod
    def create(cls, *args: Any, **options: Any) -> Sandbox:
        """A new sandbox: the same as `Sandbox(...)`."""
        return cls(*args, **options)

    @classmethod
    def connect(cls, sandbox_id: str, *, api_key: str | None = None, api_url: str | None = None) -> Sandbox:
        """A sandbox that exists. Raises NotFound, or SandboxEnded with how it ended."""
        sandbox = cls.__new__(cls)
        sandbox._portal = portal()
        connected = AsyncSandbox.connect(sandbox_id, api_key=api_key, api_url=api_url)
        sandbox._sandbox = sandbox._portal.run(connected)
        return sandbox

    @classmethod
    def list(
        cls, *, state: str | None = None, api_key: str | None = None, api_url: str | None = None
    ) -> InfoList:
        """One's own sandboxes, newest first; `state` keeps those that are creating, running or ended."""
        return portal().run(AsyncSandbox.list(state=state, api_key=api_key, api_url=api_url))

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()

    def terminate(self) -> bool:
        """End the sandbox and everything in it; False when it had ended already."""
        return self._portal.run(self._sandbox.terminate())

    def close(self) -> None:
        """Let go of the sandbox without ending it; `connect(id)` finds it again."""
        self._portal.run(self._sandbox.close())

    # -- what it is

    @property
    def info(self) -> SandboxInfo:
        """What the gateway said when the sandbox began."""
        return self._sandbox.info

    @property
    def id(self) -> str:
        """Its id, as `sb-…`."""
        return self._sandbox.id

    @property
    def runtime(self) -> str:
        """The runtime that serves, which may be a nearby version of the one asked for (see `warnings`)."""
        return self._sandbox.runtime

    @property
    def created_at(self) -> datetime:
        """When it was created."""
        return self._sandbox.created_at

    @property
    def start(self) -> Start:
        """Whether it came from a warm pool, and if not, why."""
        return self._sandbox.start

    @property
    def warnings(self) -> Warnings:
        """What differs from what was asked for."""
        return self._sandbox.warnings

    @property
    def files(self) -> Files:
        """Its files."""
        return Files(self._portal, self._sandbox.files)

    @property
    def commands(self) -> Commands:
        """Its background commands."""
        return Commands(self._portal, self._sandbox.commands)

    @property
    def contexts(self) -> Contexts:
        """Its kernels."""
        return Contexts(self._portal, self._sandbox.contexts)

    def status(self) -> SandboxStatus:
        """How it is now, and what it uses."""
        return self._portal.run(self._sandbox.status())

    def set_timeout(
        self,
        timeout: float | None = None,
        *,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
    ) -> None:
        """Change the limits that are given (seconds): of one execution, of idleness, of its whole life."""
        self._portal.run(
            self._sandbox.set_timeout(timeout, idle_timeout=idle_timeout, max_lifetime=max_lifetime)
        )

    # -- code

    def run_code(
        self,
        code: str,
        *,
        language: str | None = None,
        context: ContextLike | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        on_stdout: Callable[[str], Any] | None = None,
        on_stderr: Callable[[str], Any] | None = None,
        on_result: Callable[[Any], Any] | None = None,
        on_error: Callable[[Any], Any] | None = None,
        stdin: Stdin | None = None,
    ) -> Execution:
        """Run code in a context (the default one), and return what it left, however it ended.

        `language` picks a context of that language, made on first use; `env` holds for this run only;
        `stdin` (text, lines, or a function of the prompt) answers `input()`. Callbacks are called in this
        thread. Raises SandboxError only when the run itself could not be carried out.
        """
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error, stdin)
        options = RunOptions(language, context, timeout, dict(env or {}), stdin is not None)
        output = Output(self._portal, self._sandbox.output(code, options))
        return output.finish(callbacks if callbacks.any else None)

    def stream_code(
        self,
        code: str,
        *,
        language: str | None = None,
        context: ContextLike | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Output:
        """The text that code puts out (stdout, stderr, a traceback), as it comes; starts when iterated.

        Its `.events()` gives typed events instead. Leaving the iteration early interrupts the code.
        """
        options = RunOptions(language, context, timeout, dict(env or {}))
        return Output(self._portal, self._sandbox.output(code, options))

    def attach(self, execution_id: str, after: int = 0) -> Output:
        """Listen to an execution (of this or another client) from behind event `after`, to its end."""
        return Output(self._portal, self._sandbox.attach(execution_id, after))

    def interrupt(self, context: ContextLike | None = None) -> None:
        """Interrupt what runs in a context (the default one); its variables stay."""
        self._portal.run(self._sandbox.interrupt(context))

    # -- commands and packages

    @overload
    def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: str | None = None,
        background: Literal[False] = False,
    ) -> CommandResult: ...

    @overload
    def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: str | None = None,
        background: Literal[True],
    ) -> Command: ...

    def run_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: str | None = None,
        background: bool = False,
    ) -> CommandResult | Command:
        """Run a shell line and wait for its end; with `background`, return the running Command at once."""
        if background:
            return self.commands.start(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        return self._portal.run(
            self._sandbox.run_command(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        )

    def stream_command(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: str | None = None,
    ) -> Output:
        """The output of a shell line as it comes. Leaving the iteration early interrupts it."""
        stream = self._sandbox.stream_command(command, cwd=cwd, env=env, timeout=timeout, stdin=stdin)
        return Output(self._portal, stream)

    def install(
        self, packages: str | Iterable[str], manager: str | None = None, *, timeout: float | None = None
    ) -> CommandResult:
        """Install packages with the runtime's package manager. Raises SandboxError when that fails."""
        return self._portal.run(self._sandbox.install(packages, manager, timeout=timeout))

    # -- files

    def upload_file(
        self,
        remote: str,
        local_path: Source | None = None,
        content: str | bytes | IO[bytes] | None = None,
        *,
        on_progress: Callable[[int], Any] | None = None,
    ) -> FileInfo:
        """Put a local file, or content, at `remote` (relative to /workspace). Streamed, of any size."""
        return self.files.upload(remote, local_path, content, on_progress=on_progress)

    def download_file(
        self,
        remote: str,
        local_path: Source | None = None,
        *,
        on_progress: Callable[[int], Any] | None = None,
    ) -> bytes | Path:
        """The content of a file; with `local_path` it is written there, and that path is returned."""
        return self.files.download(remote, local_path, on_progress=on_progress)

    def list_files(self, path: str = "/workspace", *, depth: int = 1) -> FileList:
        """What is in a folder, `depth` levels deep."""
        return self.files.list(path, depth=depth)

    def __repr__(self) -> str:
        return f"<Sandbox {self.id} {self.runtime}>"
