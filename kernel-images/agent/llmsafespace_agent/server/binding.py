"""bind: the one step that makes a warm sandbox somebody's. Once; the same claim again is answered alike."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING

import msgspec

from llmsafespace_agent.server import validation
from llmsafespace_agent.server.context import Setting
from llmsafespace_agent.server.errors import conflict, invalid
from llmsafespace_agent.server.limits import check_limits
from llmsafespace_protocol.requests import BindRequest, Status

if TYPE_CHECKING:
    from llmsafespace_agent.server.agent import Agent

_MAX_LABELS = 64


class Binding:
    """Whose the sandbox is. `environment` is what its kernels and commands get beside the base."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._claim: tuple[str, bytes] | None = None
        self._under_way: asyncio.Task[None] | None = None
        self.sandbox_id: str | None = None
        self.bound_at: float | None = None
        self.environment: dict[str, str] = {}

    @property
    def bound(self) -> bool:
        """Whether the sandbox is somebody's."""
        return self.bound_at is not None

    async def bind(self, request: BindRequest) -> Status:
        """Make the sandbox personal. Raises AgentError(conflict) for any other claim than the first.

        When no kernel starts, the same claim may be sent again.
        """
        digest = hashlib.sha256(msgspec.json.encode(request, order="deterministic")).digest()
        claim = (validation.identifier(request.claim_id, "claimId"), digest)
        if self._claim is None:
            setting = self._checked(request)
            self._claim = claim
            self._start(request, setting)
        elif self._claim != claim:
            raise conflict("this sandbox has been bound by another claim; claim another sandbox")
        elif not self.bound and self._under_way is None:
            self._start(request, self._checked(request))
        if self._under_way is not None:
            await asyncio.shield(self._under_way)  # a caller that leaves does not undo the bind
        return self._agent.status()

    def _start(self, request: BindRequest, setting: Setting) -> None:
        self._under_way = asyncio.create_task(self._bind(request, setting))
        self._under_way.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._under_way = None
        if not task.cancelled():
            task.exception()  # those who wait have seen it

    def _checked(self, request: BindRequest) -> Setting:
        if len(request.labels) > _MAX_LABELS:
            raise invalid(f"labels: at most {_MAX_LABELS} are possible")
        validation.identifier(request.sandbox_id, "sandboxId")
        check_limits(request.limits)
        config = self._agent.config
        validation.egress_token(request.egress_token)
        return Setting(
            id=validation.identifier(request.context_id, "contextId"),
            name="",
            language=self._agent.contexts.language(request.language),
            cwd=validation.working_folder(request.cwd, config.workspace, self._agent.inside),
            env=validation.environment(request.env),
            timezone=validation.timezone(request.timezone),
        )

    async def _bind(self, request: BindRequest, setting: Setting) -> None:
        self._agent.open_egress(request.egress_token)
        await self._agent.contexts.default(setting)
        self.environment = dict(setting.env)
        if setting.timezone is not None:
            self.environment.setdefault("TZ", setting.timezone)
        self.sandbox_id = request.sandbox_id
        self.bound_at = time.time()
        self._agent.activity()
        self._agent.limits.bound(request.limits)
