"""Where kernels come from: parked ahead of need, forked from a template, or started by exec."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from llmsafespace_agent.inside.inside import Inside
from llmsafespace_agent.kernels.process import KernelProcess
from llmsafespace_agent.kernels.starting import (
    KernelStartError,
    Parked,
    Starter,
    start_by_exec,
    start_foreign,
)
from llmsafespace_agent.kernels.template import Template
from llmsafespace_protocol.configuration import AgentConfig, KernelKind
from llmsafespace_protocol.environment import early

__all__ = ["KernelStartError", "Kernels"]

_CONSIDERATE = 0.25  # seconds after a take before the next child is parked: the first execution goes first


class Kernels:
    """All ways to a kernel in this sandbox.

    `problems` tells of preload packages and scripts that failed, and of templates that had to be given up.
    """

    def __init__(self, config: AgentConfig, inside: Inside) -> None:
        self.problems: list[str] = []
        self._config = config
        self.inside = inside
        self._starter = Starter(config, inside)
        self._kinds = {kind.language: kind for kind in reversed(config.kernels)}
        self._templates: dict[tuple[str, ...], asyncio.Task[Template]] = {}
        self._parked: dict[str, deque[Parked]] = {language: deque() for language in self._kinds}
        self._parking: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def languages(self) -> list[str]:
        """The languages of the configuration; the first is the default."""
        return [kind.language for kind in self._config.kernels]

    async def start(self) -> None:
        """Start the template and parking in the background; returns at once. Failures are told by `ready`."""
        self._starter.prepare()
        default = self._kind(None)
        if default.template and self._config.parked > 0:
            self._park_soon(default, 0.0)

    async def ready(self) -> None:
        """Wait until a kernel of the default language is parked. KernelStartError when that failed."""
        default = self._kind(None)
        parking = self._parking.get(default.language)
        if not self._parked[default.language] and parking is not None:
            await asyncio.shield(parking)

    async def take(
        self,
        language: str | None,
        *,
        env: dict[str, str],
        cwd: str | None,
        timezone: str | None,
    ) -> KernelProcess:
        """A kernel of `language` (None: the default), bound to env, cwd and time zone, and running.

        Messages may be sent at once. ValueError for an unknown language or a cwd that is no directory,
        KernelStartError when the kernel does not start.
        """
        kind = self._kind(language)
        self._check_folder(cwd)
        if not kind.template:
            return await start_foreign(self._starter, kind, env, cwd, timezone)
        if early(env):
            parked = await start_by_exec(self._starter, kind, env, timezone)
            return await parked.bind(env, cwd, timezone)
        kernel = await self._bound(kind, env, cwd, timezone)
        if self._config.parked > 0:
            self._park_soon(kind, _CONSIDERATE)
        return kernel

    async def close(self) -> None:
        """End templates and parked kernels (not those that were taken), remove their files."""
        self._closed = True
        for task in [*self._parking.values(), *self._templates.values()]:
            if not task.done():
                task.cancel()
            with suppress(asyncio.CancelledError, KernelStartError):
                await task
        waiting = [parked for line in self._parked.values() for parked in line]
        for parked in waiting:
            parked.discard()
        for started in self._templates.values():
            if not started.cancelled() and started.exception() is None:
                started.result().close()
        for parked in waiting:
            await parked.kernel.gone()
        self._starter.remove()

    def _check_folder(self, cwd: str | None) -> None:
        if cwd is not None and self.inside.folder_error(cwd) != 0:
            raise ValueError(f"the working directory {cwd} does not exist")

    def _kind(self, language: str | None) -> KernelKind:
        if language is None:
            return self._config.kernels[0]
        try:
            return self._kinds[language]
        except KeyError:
            known = ", ".join(self.languages)
            raise ValueError(f"there is no {language} kernel here, only: {known}") from None

    async def _bound(
        self, kind: KernelKind, env: dict[str, str], cwd: str | None, timezone: str | None
    ) -> KernelProcess:
        while (parked := await self._next_parked(kind)) is not None:
            with suppress(KernelStartError):  # it died while it was parked
                return await parked.bind(env, cwd, timezone)
        return await (await self._fresh(kind)).bind(env, cwd, timezone)

    async def _next_parked(self, kind: KernelKind) -> Parked | None:
        """A living parked kernel, or the one that is just being parked, or None."""
        line = self._parked[kind.language]
        parking = self._parking.get(kind.language)
        if not line and parking is not None and not parking.done():
            await asyncio.wait([parking])
        while line:
            parked = line.popleft()
            if parked.kernel.alive:
                parked.kernel.start_kind = "parked"
                return parked
        return None

    async def _fresh(self, kind: KernelKind) -> Parked:
        """A new parked kernel: forked where that is possible, by exec otherwise."""
        template = await self._template(kind)
        if template is not None:
            try:
                return await template.fork(kind)
            except KernelStartError as error:
                self._problem(f"{error}: kernels start by exec")
        return await start_by_exec(self._starter, kind, {})

    async def _template(self, kind: KernelKind) -> Template | None:
        """The template of the kind's interpreter, started when there is none; None when it cannot be used."""
        key = (*kind.argv, *(f"{name}={value}" for name, value in sorted(kind.env.items())))
        if key not in self._templates:
            self._templates[key] = asyncio.create_task(self._start_template(kind))
        try:
            template = await asyncio.shield(self._templates[key])
        except KernelStartError:
            return None
        return template if template.usable else None

    async def _start_template(self, kind: KernelKind) -> Template:
        template = Template(self._starter, kind)
        try:
            await template.start()
        except BaseException as error:
            template.close()
            if isinstance(error, KernelStartError):
                self._problem(f"{error}: kernels start by exec")
            raise
        for problem in [*template.problems, *([template.unforkable] if template.unforkable else [])]:
            self._problem(problem)
        return template

    def _problem(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _park_soon(self, kind: KernelKind, delay: float) -> None:
        running = self._parking.get(kind.language)
        if self._closed or (running is not None and not running.done()):
            return
        task = asyncio.create_task(self._park(kind, delay))
        task.add_done_callback(_seen)
        self._parking[kind.language] = task

    async def _park(self, kind: KernelKind, delay: float) -> None:
        await asyncio.sleep(delay)
        line = self._parked[kind.language]
        while len(line) < self._config.parked and not self._closed:
            line.append(await self._fresh(kind))


def _seen(task: asyncio.Task[None]) -> None:
    """A failed parking is told by `ready`; nobody else needs to hear of it."""
    if not task.cancelled():
        task.exception()
