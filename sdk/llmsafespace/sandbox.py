"""AsyncSandbox: an isolated place with a real Jupyter kernel in it, for asyncio programs."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal, overload

from llmsafespace import models, requests
from llmsafespace.clients import Client, client_for
from llmsafespace.commands import AsyncCommands, Command
from llmsafespace.contexts import AsyncContexts, ContextLike, id_of
from llmsafespace.errors import NotFound, SandboxEnded, SandboxError
from llmsafespace.event_stream import follow
from llmsafespace.files import AsyncFiles, FileList
from llmsafespace.models import CommandResult, FileInfo, SandboxInfo, SandboxStatus, Start
from llmsafespace.outputs import AsyncOutput, Callbacks, SandboxWarning, Stdin
from llmsafespace.requests import Content, NetworkAccess
from llmsafespace.results import Execution
from llmsafespace.runner import Runner, RunOptions
from llmsafespace.transport import API, Transport, segment

Source = str | Path
InfoList = list[SandboxInfo]
Warnings = list[str]
# Seconds. A runtime that is used for the first time may have to be prepared. In a cluster a sandbox may wait
# for its turn (180), for a node (15; 300 where they are added on demand), its pod (180) and an operator (90).
CREATE_TIMEOUT = 900.0
# Seconds until it is asked for on another connection, as the first may have gone silent. A start may take
# longer: for what is under way the gateway makes one sandbox, however often it is asked.
CREATE_SOON = 240.0
INTERRUPT_SOON = 10.0


class AsyncSandbox:
    """A sandbox. It begins with `await AsyncSandbox(...)` or `async with AsyncSandbox(...) as sandbox:`.

    `timeout` (seconds) is the longest that one execution may run. The sandbox ends with `terminate()`,
    after `idle_timeout` seconds with nothing running and nobody connected, or at `max_lifetime`.
    `warm_pool` names the pool to take it from, with what that preloads; see `start.pool` and `pool_owner`.
    Without `api_url`, `api_key` and their environment variables a private gateway is started.
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
        self._wish = requests.creation(
            runtime=runtime,
            security_level=security_level,
            timeout=timeout,
            resources=resources,
            network_access=network_access,
            use_warm_pool=use_warm_pool,
            warm_pool=warm_pool,
            env=env,
            files=files,
            packages=packages,
            cwd=cwd,
            metadata=metadata,
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
        )
        self._where = (api_url, api_key)
        self._idempotency_key = uuid.uuid4().hex
        self._client: Client | None = None
        self._info: SandboxInfo | None = None

    # -- beginning and end

    @classmethod
    async def create(cls, *args: Any, **options: Any) -> AsyncSandbox:
        """A new sandbox that is ready: the same as `await AsyncSandbox(...)`."""
        return await cls(*args, **options)

    @classmethod
    async def connect(
        cls, sandbox_id: str, *, api_key: str | None = None, api_url: str | None = None
    ) -> AsyncSandbox:
        """A sandbox that exists. Raises NotFound, or SandboxEnded with how it ended."""
        sandbox = cls(api_key=api_key, api_url=api_url)
        client = await client_for(api_url, api_key)
        try:
            document = await client.transport.request("GET", f"{API}/sandboxes/{segment(sandbox_id)}")
            info = models.sandbox_info(document)
            if info.state == "ended":
                raise SandboxEnded(
                    f"sandbox {sandbox_id} has ended: {info.end}", code="gone", details={"end": info.end}
                )
        except BaseException:
            await client.close()
            raise
        sandbox._enter(client, info)
        return sandbox

    @classmethod
    async def list(
        cls, *, state: str | None = None, api_key: str | None = None, api_url: str | None = None
    ) -> InfoList:
        """One's own sandboxes, newest first; `state` keeps those that are creating, running or ended."""
        client = await client_for(api_url, api_key)
        try:
            documents = [item async for item in pages(client.transport, f"{API}/sandboxes")]
        finally:
            await client.close()
        return [info for info in map(models.sandbox_info, documents) if state in (None, info.state)]

    def __await__(self) -> Generator[Any, None, AsyncSandbox]:
        return self.begin().__await__()

    async def __aenter__(self) -> AsyncSandbox:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.terminate()

    async def begin(self) -> AsyncSandbox:
        """Create it, unless that is done. A broken connection never makes two of it."""
        if self._info is not None:
            return self
        client = await client_for(*self._where)
        try:
            document = await client.transport.request(
                "POST",
                f"{API}/sandboxes",
                body=self._wish,
                headers={"Idempotency-Key": self._idempotency_key},
                timeout=CREATE_TIMEOUT,
                repeatable=True,
                soon=CREATE_SOON,
            )
        except BaseException:
            await client.close()
            raise
        self._enter(client, models.sandbox_info(document), fresh=True)
        return self

    def _enter(self, client: Client, info: SandboxInfo, *, fresh: bool = False) -> None:
        transport = client.transport
        self._client, self._info = client, info
        self._path = f"{API}/sandboxes/{segment(info.id)}"
        self._contexts = AsyncContexts(transport, info.id, info.kernel_id)
        self._files = AsyncFiles(transport, info.id)
        self._commands = AsyncCommands(transport, info.id)
        self._runner = Runner(transport, info, self._contexts)
        if fresh and info.kernel_id is not None:
            self._runner.stream(info.kernel_id, fresh=True)
        for warning in info.warnings:
            warnings.warn(warning, SandboxWarning, stacklevel=2)

    async def terminate(self) -> bool:
        """End the sandbox and everything in it; False when it had ended already."""
        if self._client is None:
            return False
        try:
            known = await self.transport.request("GET", self._path)
            if known["status"] != "ended":
                await self.transport.request("DELETE", self._path)
        except (NotFound, SandboxEnded):
            return False
        finally:
            await self.close()
        return bool(known["status"] != "ended")

    async def close(self) -> None:
        """Let go of the sandbox without ending it; `connect(id)` finds it again."""
        client, self._client = self._client, None
        if client is not None:
            await self._runner.close()
            await client.close()

    # -- what it is

    @property
    def info(self) -> SandboxInfo:
        """What the gateway said when the sandbox began. Raises SandboxError before that."""
        if self._info is None:
            raise SandboxError("the sandbox has not begun: await it, or use `async with`")
        return self._info

    @property
    def id(self) -> str:
        """Its id, as `sb-…`."""
        return self.info.id

    @property
    def runtime(self) -> str:
        """The runtime that serves, which may be a nearby version of the one asked for (see `warnings`)."""
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
        """What differs from what was asked for."""
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
        """The connection to the gateway. Raises SandboxError before the sandbox has begun, and after it."""
        info = self.info
        if self._client is None:
            raise SandboxEnded(
                f"sandbox {info.id} was terminated or closed here", code="gone", details={"end": "terminated"}
            )
        return self._client.transport

    async def status(self) -> SandboxStatus:
        """How it is now, and what it uses."""
        return models.sandbox_status(await self.transport.request("GET", f"{self._path}/status"))

    async def set_timeout(
        self,
        timeout: float | None = None,
        *,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
    ) -> None:
        """Change the limits that are given (seconds): of one execution, of idleness, of its whole life."""
        wish = {"timeout": timeout, "idleTimeout": idle_timeout, "maxLifetime": max_lifetime}
        body = {name: value for name, value in wish.items() if value is not None}
        document = await self.transport.request("PATCH", self._path, body=body, repeatable=True)
        self._info = models.sandbox_info(document)
        self._runner.timeout = self._info.timeout

    # -- code

    async def run_code(
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
        `stdin` (text, lines, or a function of the prompt) answers `input()`. Callbacks may be coroutine
        functions. Raises SandboxError only when the run itself could not be carried out.
        """
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error, stdin)
        options = RunOptions(language, context, timeout, dict(env or {}), stdin is not None)
        return await self.output(code, options).finish(callbacks if callbacks.any else None)

    def stream_code(
        self,
        code: str,
        *,
        language: str | None = None,
        context: ContextLike | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AsyncOutput:
        """The text that code puts out (stdout, stderr, a traceback), as it comes; starts when iterated.

        Its `.events()` gives typed events instead. Leaving the iteration early interrupts the code.
        """
        return self.output(code, RunOptions(language, context, timeout, dict(env or {})))

    def output(self, code: str, options: RunOptions) -> AsyncOutput:
        """The output of code that runs with these options; starts when iterated."""
        self.transport  # noqa: B018
        return self._runner.output(code, options)

    def attach(self, execution_id: str, after: int = 0) -> AsyncOutput:
        """Listen to an execution (of this or another client) from behind event `after`, to its end."""
        batches = follow(self.transport, self.id, execution_id, after=after)
        return AsyncOutput(execution_id, batches)

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
        stdin: str | None = None,
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
        stdin: str | None = None,
        background: Literal[True],
    ) -> Command: ...

    async def run_command(
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
        stdin: str | None = None,
    ) -> AsyncOutput:
        """The output of a shell line as it comes. Leaving the iteration early interrupts it."""
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
        """Put a local file, or content, at `remote` (relative to /workspace). Streamed, of any size."""
        return await self.files.upload(remote, local_path, content, on_progress=on_progress)

    async def download_file(
        self,
        remote: str,
        local_path: Source | None = None,
        *,
        on_progress: Callable[[int], Any] | None = None,
    ) -> bytes | Path:
        """The content of a file; with `local_path` it is written there, and that path is returned."""
        return await self.files.download(remote, local_path, on_progress=on_progress)

    async def list_files(self, path: str = "/workspace", *, depth: int = 1) -> FileList:
        """What is in a folder, `depth` levels deep."""
        return await self.files.list(path, depth=depth)

    def __repr__(self) -> str:
        return "<AsyncSandbox>" if self._info is None else f"<AsyncSandbox {self.id} {self.runtime}>"


async def pages(transport: Transport, path: str) -> AsyncIterator[dict[str, Any]]:
    """Every item of a list that the gateway gives in pages."""
    after: str | None = None
    while True:
        params = {"after": after} if after is not None else None
        document = await transport.request("GET", path, params=params)
        for item in document["items"]:
            yield item
        after = document.get("next")
        if after is None:
            return
