"""Shell commands in a sandbox: to their end, streamed, or in the background."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llmsafespace import requests, values
from llmsafespace.errors import NotFound, SandboxError
from llmsafespace.event_stream import followed
from llmsafespace.leaving import Leaving
from llmsafespace.messages import new_id
from llmsafespace.models import CommandResult
from llmsafespace.outputs import AsyncOutput
from llmsafespace.results import Execution
from llmsafespace.transport import API, Transport, segment

Input = str | bytes  # for standard input: text, or bytes as they are


class AsyncCommand:
    """A command that runs in the background."""

    def __init__(self, commands: AsyncCommands, document: Mapping[str, Any]) -> None:
        self._commands = commands
        self._document = document

    @property
    def id(self) -> str:
        """Its id."""
        return str(self._document["id"])

    @property
    def command(self) -> str:
        """The command line."""
        return str(self._document["command"])

    @property
    def pid(self) -> int:
        """The process id that it has in the sandbox."""
        return int(self._document["pid"])

    async def running(self) -> bool:
        """True while it runs."""
        return bool((await self._commands.get(self.id))["running"])

    def stream(self, after: int = 0) -> AsyncOutput:
        """Its output as it arrives, from behind event `after` on. Leaving early does not stop it."""
        return self._commands.attach(self.id, after)

    async def wait(self) -> CommandResult:
        """Wait for its end; its output and exit code."""
        return await self._commands.finish(self.stream())

    async def send_stdin(self, data: Input, *, eof: bool = False) -> None:
        """Write text or bytes to its standard input; `eof` closes it afterwards."""
        body = values.input_of(data, "data", "encoding")
        await self._commands.post(self.id, "stdin", {**body, "eof": eof})

    async def signal(self, name: str = "SIGTERM") -> None:
        """Send a signal to its process group."""
        await self._commands.post(self.id, "signal", {"signal": name})

    async def kill(self) -> bool:
        """End it at once; False when it had ended."""
        return await self._commands.kill(self.id)

    def __repr__(self) -> str:
        return f"<Command {self.id} {self.command!r}>"


CommandList = list[AsyncCommand]


class AsyncCommands:
    """A sandbox's background commands."""

    def __init__(self, transport: Transport, sandbox_id: str, leaving: Leaving) -> None:
        self._transport = transport
        self._leaving = leaving
        self._sandbox_id = sandbox_id
        self._base = f"{API}/sandboxes/{segment(sandbox_id)}"
        self._path = f"{self._base}/commands"

    async def start(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
    ) -> AsyncCommand:
        """Start a command in the background. Without `stdin` its standard input stays open to send_stdin."""
        # A line, as in the foreground: a program that is missing ends both with 127, not one with an error.
        line = requests.command_line(values.command(command))
        body: dict[str, Any] = {"id": new_id(), "background": True, "command": line}
        body["env"] = values.environment(env)
        optional = {**_optional(cwd, timeout, stdin), "keepStdin": stdin is None or None}
        body |= {name: value for name, value in optional.items() if value is not None}
        return AsyncCommand(
            self, await self._transport.request("POST", self._path, body=body, repeatable=True)
        )

    async def list(self) -> CommandList:
        """The commands that the sandbox still knows, newest first."""
        document = await self._transport.request("GET", self._path)
        return [AsyncCommand(self, item) for item in document["items"]]

    async def get(self, command_id: str) -> dict[str, Any]:
        """The gateway's description of a command. Raises NotFound."""
        document: dict[str, Any] = await self._transport.request("GET", f"{self._path}/{segment(command_id)}")
        return document

    async def kill(self, command_id: str) -> bool:
        """End a command; False when it had ended."""
        try:
            await self._transport.request("DELETE", f"{self._path}/{segment(command_id)}")
        except NotFound:
            return False
        return True

    async def post(self, command_id: str, what: str, body: Mapping[str, Any]) -> None:
        """Send something to a command."""
        await self._transport.request("POST", f"{self._path}/{segment(command_id)}/{what}", body=body)

    def stream(
        self,
        command: str | Iterable[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stdin: Input | None = None,
    ) -> AsyncOutput:
        """The output of a shell command as it arrives; the command starts when iterated."""
        execution_id = new_id()
        request: dict[str, Any] = {
            "type": "command",
            "executionId": execution_id,
            "content": requests.command_line(values.command(command)),
            "env": values.environment(env),
        }
        optional = _optional(cwd, timeout, stdin)
        request |= {name: value for name, value in optional.items() if value is not None}
        return followed(
            self._transport, self._sandbox_id, execution_id, request=request, leave=self._leaving.command
        )

    def attach(self, command_id: str, after: int = 0) -> AsyncOutput:
        """The output of a command that was started."""
        return followed(self._transport, self._sandbox_id, command_id, after=after)

    async def finish(self, output: AsyncOutput) -> CommandResult:
        """Listen to a command's end."""
        return command_result(output, await output.finish())

    async def install(
        self, packages: Iterable[str], manager: str | None, timeout: float | None
    ) -> CommandResult:
        """Install packages, and wait. Raises SandboxError with the installer's last words when it fails."""
        command_id = new_id()
        body: dict[str, Any] = {"packages": list(packages), "commandId": command_id, "wait": False}
        optional = {"manager": manager, "timeout": timeout}
        body |= {name: value for name, value in optional.items() if value is not None}
        await self._transport.request("POST", f"{self._base}/packages", body=body, repeatable=True)
        result = await self.finish(self.attach(command_id))
        if not result.success:
            words = (result.stderr or result.stdout).strip()[-2000:]
            raise SandboxError(
                f"installation of {' '.join(packages)} ended with {result.end!r} "
                f"(exit code {result.exit_code}): {words}",
                code="install_failed",
            )
        return result


def _optional(cwd: str | None, timeout: float | None, stdin: Input | None) -> dict[str, Any]:
    return {
        "cwd": values.optional_path(cwd, "cwd"),
        "timeout": values.seconds(timeout, "timeout"),
        **values.input_of(stdin),
    }


def command_result(output: AsyncOutput, execution: Execution) -> CommandResult:
    """The result of a command whose output has ended."""
    end = output.end
    return CommandResult(
        stdout=execution.stdout,
        stderr="".join(execution.logs.stderr),
        exit_code=end.exit_code if end is not None else 1,
        end=execution.end,
        execution_time=execution.execution_time,
        id=execution.id,
    )
