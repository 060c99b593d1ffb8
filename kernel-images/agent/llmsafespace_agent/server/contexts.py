"""The contexts of the sandbox: the default one, made by bind, and those that are added to it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

from llmsafespace_agent.kernels.factory import Kernels
from llmsafespace_agent.server import validation
from llmsafespace_agent.server.context import Context, Setting, Watcher
from llmsafespace_agent.server.errors import AgentError, conflict, invalid, not_found
from llmsafespace_agent.server.executions import Executions
from llmsafespace_agent.server.gate import Gate
from llmsafespace_agent.server.journal import Journal
from llmsafespace_protocol.requests import ContextCreate

LIMIT = 32


class Contexts:
    """All contexts by id; the first is the default."""

    def __init__(
        self,
        kernels: Kernels,
        executions: Executions,
        gate: Gate,
        watcher: Watcher,
        folder: Path,
        quotas: tuple[int, int],
    ) -> None:
        self._kernels = kernels
        self._executions = executions
        self._gate = gate
        self._watcher = watcher
        self._folder = folder
        self._memory, self._disk = quotas
        self._contexts: dict[str, Context] = {}
        self._setting: Setting | None = None  # of the default context

    def __iter__(self) -> Iterator[Context]:
        return iter(tuple(self._contexts.values()))

    def get(self, context_id: str) -> Context:
        """The context of this id. Raises AgentError(not_found)."""
        context = self._contexts.get(context_id)
        if context is None:
            raise not_found(f"there is no context {context_id!r} in this sandbox", id=context_id)
        return context

    async def default(self, setting: Setting) -> Context:
        """Make the default context. Raises AgentError; it is then not there."""
        context = await self._make(setting)
        self._setting = setting
        return context

    async def create(self, request: ContextCreate, workspace: str) -> Context:
        """Make a further context; the same request again gets the same one."""
        setting = self._personal(request, workspace)
        known = self._contexts.get(setting.id)
        if known is not None:
            if known.setting != setting:
                raise conflict(
                    f"context id {setting.id!r} is in use with other settings; use another", id=setting.id
                )
            await known.settled()
            return known
        return await self._make(setting)

    async def for_language(self, language: str | None, workspace: str) -> Context:
        """The first context of this language (None: the default context), made where there is none."""
        for context in self:
            if language is None or context.language == language:
                return context
        if language is None:
            raise not_found("this sandbox has no context any more; create one")
        return await self.create(ContextCreate(id=str(uuid.uuid4()), language=language), workspace)

    async def remove(self, context_id: str) -> None:
        """End a context and forget it."""
        context = self.get(context_id)
        await context.close("kernel_died", "The context was removed.")
        self._contexts.pop(context_id, None)
        self._executions.forget_context(context_id)
        context.removed()

    def _personal(self, request: ContextCreate, workspace: str) -> Setting:
        base = self._setting
        return Setting(
            id=validation.identifier(request.id, "the context's id"),
            name=validation.text(request.name, "name", 256),
            language=self.language(request.language),
            cwd=validation.working_folder(
                request.cwd or (base.cwd if base else None), workspace, self._kernels.inside
            ),
            env={**(base.env if base else {}), **validation.environment(request.env)},
            timezone=base.timezone if base else None,
        )

    def language(self, language: str | None) -> str | None:
        """A language that this sandbox has. Raises AgentError."""
        if language is not None and language not in self._kernels.languages:
            raise invalid(
                f"this sandbox has no {language[:80]!r} kernel, only {', '.join(self._kernels.languages)}",
                languages=self._kernels.languages,
            )
        return language

    async def _make(self, setting: Setting) -> Context:
        if len(self._contexts) >= LIMIT:
            raise AgentError("quota_exceeded", f"a sandbox has at most {LIMIT} contexts; remove one first")
        journal = Journal(self._folder, self._memory, self._disk)
        context = Context(setting, self._kernels, journal, self._executions, self._gate, self._watcher)
        self._contexts[setting.id] = context
        try:
            await context.start()
        except BaseException:
            self._contexts.pop(setting.id, None)
            context.removed()
            raise
        return context
