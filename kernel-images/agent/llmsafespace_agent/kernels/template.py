"""The agent's side of a template: the process that has imported everything, and forks kernels on request."""

from __future__ import annotations

import asyncio

from llmsafespace_agent.kernels.link import Link, LinkClosed
from llmsafespace_agent.kernels.starting import KernelStartError, Parked, Starter, log_tail, park
from llmsafespace_protocol.configuration import KernelKind

_PRELOAD_TIMEOUT = 600.0


class Template:
    """One template process; kernels of all languages of one interpreter are forked from it."""

    def __init__(self, starter: Starter, kind: KernelKind) -> None:
        self._starter = starter
        self._kind = kind
        self._link: Link | None = None
        self._pid = 0
        self.problems: list[str] = []
        self.unforkable: str | None = None

    async def start(self) -> None:
        """Start it and wait until it has preloaded. Raises KernelStartError."""
        log = self._starter.near / f"template-{self._kind.language}.log"
        link, theirs = Link.pair()
        argv = self._starter.launcher_argv(self._kind, "template", theirs.fileno())
        env = self._starter.environment(self._kind, {})
        sending = asyncio.ensure_future(link.send(self._starter.orders(self._kind)))  # they wait for it
        try:
            with theirs:
                self._pid = await self._starter.spawn(argv, env, log, theirs.fileno())
        except BaseException:
            sending.cancel()
            link.close()
            raise
        self._link = link
        self._starter.inside.watch(self._pid, self._died)
        try:
            async with asyncio.timeout(_PRELOAD_TIMEOUT):
                await sending
                report = await link.receive()
        except (LinkClosed, TimeoutError) as error:
            self.close()
            raise KernelStartError(f"the template did not start: {error}{log_tail(log)}") from error
        self.problems = [str(problem) for problem in report.get("problems", [])]
        self.unforkable = report.get("unforkable")

    @property
    def usable(self) -> bool:
        """Whether kernels can be forked from it now."""
        return self._link is not None and self.unforkable is None

    async def fork(self, kind: KernelKind) -> Parked:
        """A parked kernel. Raises KernelStartError."""
        if self._link is None:
            raise KernelStartError("the template has ended")
        kernel, connection_file = self._starter.new_kernel(kind, "fork")
        link, theirs = Link.pair()
        order = {"connection_file": str(connection_file), "language": kind.language}
        try:
            with theirs:
                await self._link.send(order, theirs)
        except LinkClosed as error:
            link.close()
            kernel.abandon()
            raise KernelStartError("the template has ended") from error
        return await park(self._starter, kernel, link, lambda pid: self._starter.launched(kernel, pid))

    def _died(self, _returncode: int) -> None:
        self._pid = 0
        self._drop_link()

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def close(self) -> None:
        """End the process; its children live on."""
        self._drop_link()
        if self._pid:
            self._starter.inside.kill(self._pid)
