"""How a kernel process comes to be: forked from a template, or started by exec. Up to the first exchange."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsafespace_agent.inside.inside import NOWHERE, Inside, Streams
from llmsafespace_agent.kernels.channels import Channels, connection_info
from llmsafespace_agent.kernels.link import Link, LinkClosed
from llmsafespace_agent.kernels.process import KernelProcess
from llmsafespace_agent.kernels.repair import repaired
from llmsafespace_protocol.configuration import AgentConfig, KernelKind

LAUNCHER = Path(__file__).with_name("launcher") / "launch.py"
START_TIMEOUT = 60.0
_LOG_TAIL = 2000


class KernelStartError(RuntimeError):
    """A kernel could not be started; the message says why, in a sentence for the user."""


class Starter:
    """What all ways of starting share: the folder for sockets, and the way inside."""

    def __init__(self, config: AgentConfig, inside: Inside) -> None:
        self.config = config
        self.inside = inside
        self.root = Path(config.run_dir) / "kernels"  # as the kernels call it; `near` is how the agent does
        self.near = self.root
        self._count = 0

    def prepare(self) -> None:
        """Make the folder for sockets, and those of the configuration. Raises OSError."""
        for folder in self.config.folders:
            Path(self.inside.reach(folder)).mkdir(parents=True, exist_ok=True)
        near = Path(self.inside.reach(str(self.root)))
        near.mkdir(mode=0o700, parents=True, exist_ok=True)
        near.chmod(0o700)
        if near != self.root:  # code may put something else in its place later: hold it
            near = Path(f"/proc/self/fd/{os.open(near, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")
        self.near = near

    def remove(self) -> None:
        """Remove the folder with what is in it."""
        shutil.rmtree(self.inside.reach(str(self.root)), ignore_errors=True)

    def environment(
        self, kind: KernelKind, env: dict[str, str], timezone: str | None = None
    ) -> dict[str, str]:
        """The whole environment of a process that is started for `kind`."""
        merged = {**self.config.env, **kind.env, **env}
        if timezone:
            merged["TZ"] = timezone
        merged.pop("JPY_PARENT_PID", None)
        return merged

    def new_kernel(self, kind: KernelKind, start_kind: str) -> tuple[KernelProcess, Path]:
        """A kernel without a process, and its connection file as it calls that. Raises KernelStartError."""
        self._count += 1
        folder = self.root / str(self._count)
        near = self.near / folder.name
        try:
            near.mkdir(mode=0o700)
            with open(_create(near / "kernel.json"), "w") as file:
                json.dump(connection_info(folder), file)
        except OSError as error:
            raise KernelStartError(f"a {kind.language} kernel did not start: {error.strerror}") from error
        kernel = KernelProcess(self.inside, kind.language, near, interrupt_mode=kind.interrupt_mode)
        kernel.start_kind = start_kind
        return kernel, folder / "kernel.json"

    def attach(self, kernel: KernelProcess, *, ours: bool) -> None:
        """Connect the channels; `ours`: it is a kernel of our launcher."""
        kernel.ours = ours
        deliver = kernel.deliver if ours else lambda channel, parts: kernel.deliver(channel, repaired(parts))
        kernel.attach(Channels(kernel.folder, deliver, acknowledging=ours))

    def launched(self, kernel: KernelProcess, pid: Any) -> None:
        """The kernel has a process: watch it. Raises LinkClosed for what cannot be one."""
        if not isinstance(pid, int) or not 1 < pid < 2**31:
            raise LinkClosed("not a message of the kernel's launcher")
        kernel.pid = pid
        self.inside.watch(pid, kernel.died)

    async def spawn(
        self, argv: list[str], env: dict[str, str], log: Path, descriptor: int | None = None
    ) -> int:
        """Start a process in a session of its own, its output in `log`. Raises KernelStartError."""
        try:
            output = _create(log)
            try:
                streams = Streams(NOWHERE, output, output)
                passed = () if descriptor is None else (descriptor,)
                return await self.inside.spawn(argv, env, self.config.workspace, streams, passed=passed)
            finally:
                os.close(output)
        except (OSError, ValueError) as error:
            raise KernelStartError(f"{argv[0]} cannot be started: {error}") from error

    def launcher_argv(self, kind: KernelKind, mode: str, descriptor: int) -> list[str]:
        """The command of our launcher in the runtime's interpreter."""
        return [*kind.argv, str(LAUNCHER), mode, str(descriptor)]

    def orders(self, kind: KernelKind) -> dict[str, Any]:
        """What a launcher preloads."""
        scripts = [{"name": script.name, "content": script.content} for script in self.config.preload_scripts]
        return {"packages": self.config.preload_packages, "scripts": scripts}


class Parked:
    """A kernel of ours that is initialized and warm, and waits to be bound."""

    def __init__(self, kernel: KernelProcess, link: Link) -> None:
        self.kernel = kernel
        self._link = link

    async def bind(self, env: dict[str, str], cwd: str | None, timezone: str | None) -> KernelProcess:
        """Make it personal. Raises KernelStartError when it died or could not enter `cwd`."""
        try:
            await self._link.send({"env": env, "cwd": cwd, "timezone": timezone})
            answer = await self._link.receive()
        except LinkClosed as error:
            self.discard()
            raise KernelStartError("the parked kernel has died") from error
        self._link.close()
        if not answer.get("bound"):
            self.kernel.kill()
            raise KernelStartError(f"the kernel could not be bound: {answer.get('error')}")
        return self.kernel

    def discard(self) -> None:
        """End it."""
        self._link.close()
        self.kernel.kill()


async def park(
    starter: Starter, kernel: KernelProcess, link: Link, launched: Callable[[Any], None]
) -> Parked:
    """Follow a launched kernel of ours until it is warm. Raises KernelStartError."""
    log = kernel.folder / "kernel.log"
    try:
        async with asyncio.timeout(START_TIMEOUT):
            launched((await link.receive()).get("pid"))
            await link.receive()  # its sockets are bound
            starter.attach(kernel, ours=True)
            await _or_death(kernel, kernel.first_exchange("execute_request", WARM_UP))
    except (LinkClosed, TimeoutError) as error:
        message = f"a {kernel.language} kernel did not start: {error or 'no answer in time'}{log_tail(log)}"
        link.close()
        kernel.abandon()
        raise KernelStartError(message) from error
    except BaseException:
        link.close()
        kernel.abandon()
        raise
    kernel.forget_messages()
    return Parked(kernel, link)


WARM_UP: dict[str, object] = {
    "code": "",
    "silent": True,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": False,
}


async def _or_death(kernel: KernelProcess, exchange: Any) -> None:
    """Await `exchange`, or raise LinkClosed when the kernel dies meanwhile."""
    task = asyncio.ensure_future(exchange)
    death = asyncio.ensure_future(kernel.gone())
    try:
        await asyncio.wait([task, death], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LinkClosed(f"it ended with {kernel.returncode}")
        task.result()
    finally:
        task.cancel()
        death.cancel()


async def start_by_exec(
    starter: Starter, kind: KernelKind, env: dict[str, str], timezone: str | None = None
) -> Parked:
    """A parked kernel of ours in a process of its own. Raises KernelStartError."""
    kernel, connection_file = starter.new_kernel(kind, "exec")
    link, theirs = Link.pair()
    with theirs:
        log = kernel.folder / "kernel.log"
        argv = starter.launcher_argv(kind, "kernel", theirs.fileno())
        try:
            pid = await starter.spawn(argv, starter.environment(kind, env, timezone), log, theirs.fileno())
        except BaseException:
            link.close()
            kernel.abandon()
            raise
    starter.launched(kernel, pid)
    order = {**starter.orders(kind), "connection_file": str(connection_file), "language": kind.language}
    try:
        await link.send(order)
    except LinkClosed as error:
        kernel.abandon()
        raise KernelStartError(f"a {kind.language} kernel did not start{log_tail(log)}") from error
    return await park(starter, kernel, link, lambda _: None)


async def start_foreign(
    starter: Starter, kind: KernelKind, env: dict[str, str], cwd: str | None, timezone: str | None
) -> KernelProcess:
    """A kernel of another maker, as its kernelspec's argv says. Raises KernelStartError."""
    kernel, connection_file = starter.new_kernel(kind, "exec")
    log = kernel.folder / "kernel.log"
    argv = [part.replace("{connection_file}", str(connection_file)) for part in kind.argv]
    whole = starter.environment(kind, env, timezone)
    if cwd:
        argv = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', cwd, *argv]
    try:
        starter.launched(kernel, await starter.spawn(argv, whole, log))
    except BaseException:
        kernel.abandon()
        raise
    starter.attach(kernel, ours=False)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await _or_death(kernel, kernel.first_exchange("kernel_info_request", {}))
    except (LinkClosed, TimeoutError) as error:
        message = f"a {kind.language} kernel did not start: {error or 'no answer in time'}{log_tail(log)}"
        kernel.abandon()
        raise KernelStartError(message) from error
    kernel.forget_messages()
    return kernel


def log_tail(log: Path) -> str:
    """The last line of a process's output, for an error message."""
    try:
        with open(os.open(log, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            lines = (file.read(_LOG_TAIL) or b"").decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return f"; its last words: {lines[-1]}" if lines else ""


def _create(path: Path) -> int:
    """A descriptor of a file that is no link: the folder is within the code's reach."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o600)
