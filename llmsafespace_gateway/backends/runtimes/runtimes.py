"""The runtimes of this machine: found at start, prepared at first use, resolved for each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmsafespace_gateway.backends.base import Runtime, RuntimeUnavailable
from llmsafespace_gateway.backends.runtimes import agent, assembly, preparation
from llmsafespace_gateway.backends.runtimes.choice import Choice, choose, ids
from llmsafespace_gateway.backends.runtimes.discovery import Interpreter, bash_version, discover
from llmsafespace_gateway.backends.runtimes.folders import mark_used, sweep_unused
from llmsafespace_gateway.backends.runtimes.pip_config import PipConfig, read_pip_config, render
from llmsafespace_gateway.backends.runtimes.prepared import PreparedRuntime
from llmsafespace_gateway.backends.runtimes.progress import Progress, ProgressBars, Steps, log
from llmsafespace_gateway.egress.rules import Rule, index_rules


class Runtimes:
    """Finds interpreters, prepares an environment for each on first use, and says which serves a request.

    `cache_dir` may be shared by any number of gateways; each environment is made once. `packages` are
    requirements as pip reads them, on top of `base`, which kernels need. `strict` refuses a version that is
    not there instead of serving the nearest one. `progress` is told each step of a preparation.
    """

    def __init__(
        self,
        cache_dir: Path,
        packages: Sequence[str] = preparation.DEFAULT_PACKAGES,
        strict: bool = False,
        progress: Progress | None = None,
        *,
        base: Sequence[str] = preparation.BASE_PACKAGES,
    ) -> None:
        self._cache = cache_dir.expanduser().absolute()
        self._packages = (*base, *packages)
        self._strict = strict
        self._progress = progress if progress is not None else ProgressBars()
        self._starting: asyncio.Task[None] | None = None
        self._own: Interpreter | None = None
        self._bash: str | None = None
        self._interpreters: dict[str, Interpreter] = {}
        self._agent_folder = Path()
        self._pip = PipConfig()
        self._pip_conf = Path()
        self._preparing: dict[str, asyncio.Task[preparation.Record]] = {}
        self._failures: dict[str, str] = {}

    async def start(self) -> None:
        """Find interpreters and make the agent's environment; further calls wait for the first.

        Raises RuntimeUnavailable when the agent's environment cannot be made.
        """
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        (own, interpreters), self._pip, self._bash = await asyncio.gather(
            discover(), read_pip_config(), bash_version()
        )
        if self._pip.had_credentials:
            log.warning(
                "sandboxes get the package index without its user and password, which they could read"
            )
        self._agent_folder = await agent.prepare_agent(self._cache, own)
        mark_used(self._agent_folder)
        self._pip_conf = assembly.write_once(self._cache, "pip.conf", render(self._pip))
        for name in await asyncio.to_thread(sweep_unused, self._cache, time.time()):
            log.info("removed %s, which nothing had used for long", name)
        self._own, self._interpreters = own, interpreters

    async def prepare(self, runtimes: Iterable[str] = ("python",)) -> list[PreparedRuntime]:
        """Prepare these runtimes ahead of need, one after the other. Raises RuntimeUnavailable."""
        return [(await self.resolve(runtime))[0] for runtime in runtimes]

    async def resolve(self, runtime: str) -> tuple[PreparedRuntime, tuple[str, ...]]:
        """The runtime that serves a request, prepared if it is not yet, and warnings about what differs.

        Raises RuntimeUnavailable, naming what is available.
        """
        await self.start()
        choice = self._choose(runtime)
        interpreter = self._interpreters[choice.minor]
        record = await self._record(interpreter)
        folder = self._folder(interpreter)
        mark_used(folder)
        mark_used(self._agent_folder)
        prepared = assembly.assemble(
            choice.language,
            interpreter,
            self._own_interpreter(),
            assembly.Parts(
                folder=folder,
                agent=self._agent_folder,
                pip_conf=self._pip_conf,
                ca_file=self._pip.ca_file,
                packages=record.packages,
                bash=self._bash,
            ),
        )
        return prepared, (choice.warning,) if choice.warning else ()

    async def list(self) -> list[Runtime]:
        """Every runtime of this machine, prepared or not."""
        await self.start()
        default = self._own_interpreter().minor
        found = [self._describe("python", minor) for minor in self._interpreters]
        return [*found, self._describe("bash", default)] if self._bash else found

    async def egress_rules(self) -> tuple[Rule, ...]:
        """What package installation must reach: the machine's own configured index."""
        await self.start()
        return index_rules(self._pip.index_urls)

    async def stop(self) -> None:
        """End preparations that run; what they had begun is removed."""
        tasks: list[asyncio.Task[object]] = [*self._preparing.values()]
        if self._starting is not None:
            tasks.append(self._starting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._preparing.clear()

    def _own_interpreter(self) -> Interpreter:
        if self._own is None:
            raise RuntimeError("Runtimes.start has not been awaited")
        return self._own

    def _choose(self, runtime: str) -> Choice:
        available = {minor: interpreter.version for minor, interpreter in self._interpreters.items()}
        choice = choose(runtime, available, self._own_interpreter().minor, self._bash)
        if isinstance(choice, str) or (self._strict and choice.warning):
            reason = choice if isinstance(choice, str) else f"{runtime} is not available here"
            names = ids(available, self._bash)
            raise RuntimeUnavailable(f"{reason}. Available: {', '.join(names)}", {"available": names})
        return choice

    def _folder(self, interpreter: Interpreter) -> Path:
        return preparation.folder_for(self._cache, interpreter, self._packages)

    async def _record(self, interpreter: Interpreter) -> preparation.Record:
        minor = interpreter.minor
        task = self._preparing.get(minor)
        if task is None or (task.done() and not self._is_prepared(minor)):
            task = asyncio.create_task(self._prepare(interpreter), name=f"prepare python:{minor}")
            self._preparing[minor] = task
        return await asyncio.shield(task)

    async def _prepare(self, interpreter: Interpreter) -> preparation.Record:
        name = f"python:{interpreter.minor}"
        steps = Steps(name, self._progress, total=3)
        try:
            record = await preparation.prepare(self._folder(interpreter), interpreter, self._packages, steps)
            await agent.compile_launcher(self._agent_folder, interpreter)
        except RuntimeUnavailable as error:
            self._failures[interpreter.minor] = error.message
            log.error("%s", error.message)
            raise
        self._failures.pop(interpreter.minor, None)
        return record

    def _is_prepared(self, minor: str) -> bool:
        """Prepared by us, and nobody has removed the folder since."""
        task = self._preparing.get(minor)
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return False
        return self._folder(self._interpreters[minor]).is_dir()

    def _describe(self, language: str, minor: str) -> Runtime:
        interpreter = self._interpreters[minor]
        task = self._preparing.get(minor)
        prepared = self._is_prepared(minor)
        packages = task.result().packages if task is not None and prepared else self._packages
        failure = self._failures.get(minor, "")
        names = assembly.names(language, interpreter, self._bash)
        return Runtime(
            id=names.id,
            language=language,
            version=names.version,
            display_name=names.display_name,
            languages=names.languages,
            packages=packages,
            available=not failure,
            reason=failure or ("" if prepared else "prepared at first use"),
        )


def default_cache_dir(environ: dict[str, str], home: Path) -> Path:
    """LLMSAFESPACE_RUNTIMES, else the user's cache folder."""
    if configured := environ.get("LLMSAFESPACE_RUNTIMES"):
        return Path(configured)
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "llmsafespace" / "runtimes"
