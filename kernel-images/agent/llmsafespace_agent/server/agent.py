"""The agent: everything of one sandbox, wired together, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.kernels.factory import Kernels, KernelStartError
from llmsafespace_agent.server import network
from llmsafespace_agent.server.beneath import Beneath
from llmsafespace_agent.server.binding import Binding
from llmsafespace_agent.server.command import Command
from llmsafespace_agent.server.commands import Commands
from llmsafespace_agent.server.connections import Connections
from llmsafespace_agent.server.contexts import Contexts
from llmsafespace_agent.server.deadlines import Deadlines
from llmsafespace_agent.server.egress_forward import Forwarder
from llmsafespace_agent.server.errors import AgentError, conflict, invalid
from llmsafespace_agent.server.executions import Executions
from llmsafespace_agent.server.files import Files
from llmsafespace_agent.server.gate import Gate
from llmsafespace_agent.server.limits import LifeLimits
from llmsafespace_agent.server.rpc import methods_of
from llmsafespace_agent.server.watchdog import Suspect, Watchdog, limit_processes
from llmsafespace_protocol.configuration import EXIT_STATUS, AgentConfig
from llmsafespace_protocol.requests import PackagesInstall, Status, Usage

_log = logging.getLogger(__name__)
_LAST_WORDS = 2.0  # seconds for readers to take what was sent before the end
_LONGEST_WAIT = 600.0
LOST, FAILED = "lost", 1


class Agent:
    """One sandbox. `run` returns the exit code that says how it ended."""

    def __init__(self, config: AgentConfig, kernels: Kernels, inside: Inside) -> None:
        journals = Path(config.run_dir) / "journal"
        journals.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config = config
        self.connected = 0  # streams that are somebody's presence, beside those of the contexts
        self.deadlines = Deadlines(config.clock)
        self.executions = Executions()
        self.gate = Gate()
        self._kernels = kernels
        self.inside = inside
        quotas = (config.journal_memory, config.journal_disk)
        self.contexts = Contexts(kernels, self.executions, self.gate, self, journals, quotas)
        self.binding = Binding(self)
        self.commands = Commands(
            inside, journals, config.workspace, self._environment, config.package_manager, self.deadlines
        )
        self.files = Files(Beneath(config.workspace, near=inside.reach(config.workspace)))
        self.limits = LifeLimits(config.max_lifetime, self._idle_since, self._expire)
        self.methods = methods_of(self)
        self._watchdog = Watchdog(
            config.limits, inside, self._suspects, lambda reason: self.end("oom", reason)
        )
        self._forwarder = Forwarder(config.egress) if config.egress is not None else None
        self._connections = Connections(self, config.listen, bytes.fromhex(config.token))
        self._problems = list(self._watchdog.problems)
        self._parked = False
        self._started = self._active = time.time()
        self._active_monotonic = time.monotonic()
        self._ended: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

    async def run(self, pending_certificate: int | None) -> int:
        """Serve until the end. Raises OSError when an address cannot be listened on.

        Also raises NetworkOpen, and, where readiness is to be told, KernelStartError.
        """
        problems = [limit_processes(self.config.limits.processes)]
        if self._forwarder is not None:
            problems.append(await self._forwarder.start(self.inside))
        self._problems += [problem for problem in problems if problem]
        await self._unless_ended(network.shut(self.config.canaries))
        await self._connections.start(pending_certificate, self.config.run_dir)
        self._watchdog.start()
        self.limits.watch()
        if self.config.ready_port is not None:
            await self._unless_ended(self._park())
            await network.listen_ready(self.config.listen.host, self.config.ready_port)
        end, reason = await self._ended
        _log.info("the sandbox ends: %s: %s", end, reason)
        await self._close(end, reason)
        return EXIT_STATUS.get(end, FAILED)

    async def _unless_ended(self, step: Coroutine[None, None, None]) -> None:
        """Take a step of the start, or give it up when the sandbox ends meanwhile."""
        task = asyncio.create_task(step)
        await asyncio.wait((task, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        task.cancel()

    def end(self, end: str, reason: str) -> None:
        """End the sandbox, once; `end` is a key of EXIT_STATUS. Raises AgentError for another word."""
        if end not in EXIT_STATUS:
            raise invalid(f"end must be one of {', '.join(EXIT_STATUS)}")
        if not self._ended.done():
            self._ended.set_result((end, reason))

    # -- its state -------------------------------------------------------------------------------

    def lost_inside(self) -> None:
        """The worker has ended, and all processes of the code with it."""
        reason = (
            "The sandbox ran out of memory." if self._watchdog.killed_one() else "The sandbox's worker ended."
        )
        if not self._ended.done():
            self._ended.set_result(("oom" if self._watchdog.killed_one() else LOST, reason))

    def activity(self) -> None:
        """Something was sent or received."""
        self._active_monotonic = time.monotonic()

    def require_bound(self) -> None:
        """Refuse what only a bound, living sandbox can do. Raises AgentError."""
        if self._ended.done():
            raise AgentError("gone", "this sandbox is ending", {"end": self._ended.result()[0]})
        if not self.binding.bound:
            raise conflict("this sandbox has not been bound yet")

    def status(self) -> Status:
        """The account of the whole sandbox."""
        return Status(
            state=self._state(),
            started_at=self._started,
            last_activity=time.time() - time.monotonic() + self._active_monotonic,
            sandbox_id=self.binding.sandbox_id,
            bound_at=self.binding.bound_at,
            contexts=[context.info() for context in self.contexts],
            usage=self._usage(),
            connections=self._present(),
            expires_at=self.limits.expires_at,
            problems=[*self._problems, *self._kernels.problems],
        )

    async def ready(self, timeout: float) -> Status:
        """The status as soon as a kernel is parked (or the sandbox bound), or after `timeout` seconds.

        Raises AgentError when no kernel can be started.
        """
        if not 0 <= timeout <= _LONGEST_WAIT:
            raise invalid(f"timeout must be 0 to {_LONGEST_WAIT:g} seconds")
        if not self.binding.bound:
            try:
                async with asyncio.timeout(timeout):
                    await self._park()
            except TimeoutError:
                return self.status()
            except KernelStartError as error:
                raise AgentError("service_unavailable", f"no kernel can be started: {error}") from error
        return self.status()

    async def _park(self) -> None:
        await self._kernels.ready()
        self._parked = True

    def _state(self) -> str:
        if self._ended.done():
            return "ending"
        if self.binding.bound:
            return "bound"
        return "ready" if self._parked else "starting"

    def _present(self) -> int:
        return self.connected + sum(context.connections for context in self.contexts)

    def _idle_since(self) -> float | None:
        if self._present() or self.commands.running or any(context.busy for context in self.contexts):
            return None
        return self._active_monotonic

    def _usage(self) -> Usage:
        total = self.inside.total
        return Usage(
            cpu_seconds=total.cpu,
            memory_bytes=self._watchdog.used(total.memory),
            disk_bytes=total.disk,
            processes=total.processes,
        )

    # -- what its parts need ---------------------------------------------------------------------

    async def install(self, request: PackagesInstall) -> Command:
        """Install packages; with `gate` executions wait for the end of it. Raises AgentError."""
        command, started = await self.commands.install(request)
        if started and request.gate:
            self.gate.close()
            command.on_end.append(self.gate.release)
        return command

    def open_egress(self, token: str | None) -> None:
        """From now on what code connects to the loopback port reaches the egress proxy, with this token."""
        if self._forwarder is not None:
            self._forwarder.token = token

    def ran_out_of_memory(self, pid: int, returncode: int) -> bool:
        """Whether a kernel that just died was killed for lack of memory."""
        return self._watchdog.killed(returncode)

    def _environment(self) -> dict[str, str]:
        return {**self.config.env, **self.binding.environment}

    def _suspects(self) -> Iterator[Suspect]:
        for context in self.contexts:
            if context.pid is not None:
                yield Suspect(context.pid, context.ran_over_memory)
        for command in self.commands.running:
            yield Suspect(command.pid, command.ran_over_memory)

    def _expire(self, reason: str) -> None:
        self.end("expired", reason)

    async def _close(self, end: str, reason: str) -> None:
        word = "expired" if end == "expired" else "aborted"  # on purpose, by somebody's wish
        self.limits.close()
        self._watchdog.stop()
        self.commands.end_all(word)
        await asyncio.gather(*(context.close(word, reason) for context in self.contexts))
        await self._connections.close(_LAST_WORDS)
        if self._forwarder is not None:
            self._forwarder.close()
        self.commands.close()
        await self._kernels.close()
        self.inside.kill_all()  # what code has detached from its kernel or command
        for context in self.contexts:
            context.removed()
