"""Use cases: what people can do here, whatever door they come through. See `base`."""

from __future__ import annotations

from llmsafespace_gateway.services.base import Caller, Parts, Service
from llmsafespace_gateway.services.channels import ChannelService
from llmsafespace_gateway.services.commands import CommandService
from llmsafespace_gateway.services.executions import Execute, ExecutionService
from llmsafespace_gateway.services.files import FileService
from llmsafespace_gateway.services.kernels import KernelService, SessionService
from llmsafespace_gateway.services.people import PeopleService
from llmsafespace_gateway.services.pools import PoolService
from llmsafespace_gateway.services.runtimes import RuntimeService
from llmsafespace_gateway.services.sandboxes import SandboxService
from llmsafespace_gateway.services.system import SystemService

__all__ = ["Caller", "Execute", "Parts", "Service", "Services"]


class Services:
    """One service per subject; `settings["services"]` of the web application."""

    def __init__(self, parts: Parts) -> None:
        self.default_runtime = parts.default_runtime
        self.any = Service(parts)  # for refusals before any use case began
        self.sandboxes = SandboxService(parts)
        self.executions = ExecutionService(parts)
        self.channels = ChannelService(parts, self.executions)
        self.commands = CommandService(parts)
        self.files = FileService(parts)
        self.kernels = KernelService(parts, self.sandboxes)
        self.sessions = SessionService(parts, self.kernels)
        self.people = PeopleService(parts)
        self.pools = PoolService(parts)
        self.runtimes = RuntimeService(parts)
        self.system = SystemService(parts, self.pools)
