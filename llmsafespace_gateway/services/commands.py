"""Use cases: commands that run already. `ExecutionService.start_command` begins one."""

from __future__ import annotations

from llmsafespace_gateway.services.base import Caller, Service
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.requests import ById, CommandInfo, CommandSignal, CommandStdin, Empty


class CommandService(Service):
    """Methods rely on the caller's right to the sandbox, which the route has checked. All raise ApiError."""

    async def all(self, row: SandboxRow) -> list[CommandInfo]:
        """The commands that the sandbox knows, newest first."""
        found: list[CommandInfo] = await self.sandboxes.rpc(row.id, "commands.list", Empty())
        return sorted(found, key=lambda info: info.started_at, reverse=True)

    async def find(self, row: SandboxRow, command: str) -> CommandInfo:
        """A command."""
        info: CommandInfo = await self.sandboxes.rpc(row.id, "commands.get", ById(id=command))
        return info

    async def signal(self, caller: Caller, row: SandboxRow, wanted: CommandSignal) -> CommandInfo:
        """Send a signal to a command's process group."""
        with self.act(caller, "command.signal", row.id, command_id=wanted.id, signal=wanted.signal):
            info: CommandInfo = await self.sandboxes.rpc(row.id, "commands.signal", wanted)
            return info

    async def kill(self, caller: Caller, row: SandboxRow, command: str) -> None:
        """Kill a command; one that has ended stays as it is."""
        if (await self.find(row, command)).running:
            with self.act(caller, "command.kill", row.id, command_id=command):
                kill = CommandSignal(id=command, signal="SIGKILL")
                await self.sandboxes.rpc(row.id, "commands.signal", kill)

    async def write(self, row: SandboxRow, wanted: CommandStdin) -> CommandInfo:
        """Write to a command's standard input."""
        info: CommandInfo = await self.sandboxes.rpc(row.id, "commands.stdin", wanted)
        return info
