"""LLMSafeSpace: run untrusted code in isolated, warm, real Jupyter kernels.

>>> from llmsafespace import Sandbox
>>> with Sandbox() as sandbox:
...     print(sandbox.run_code("print(6 * 7)").stdout)
42
"""

from llmsafespace import events
from llmsafespace.commands import Command as AsyncCommand
from llmsafespace.errors import (
    AuthenticationError,
    GatewayUnavailable,
    InvalidRequest,
    NoRoom,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
    RateLimited,
    RuntimeUnavailable,
    SandboxEnded,
    SandboxError,
    SandboxTimeout,
)
from llmsafespace.models import CommandResult, Context, FileEvent, FileInfo, SandboxInfo, SandboxStatus, Start
from llmsafespace.outputs import AsyncOutput, SandboxWarning
from llmsafespace.results import Execution, ExecutionError, ExecutionFailed, Logs, Result
from llmsafespace.sandbox import AsyncSandbox
from llmsafespace.sync import Sandbox
from llmsafespace.sync_parts import Command, Output
from llmsafespace.warm_pools import WarmPool, WarmPoolStatus, get_warm_pool, list_warm_pools

__all__ = [
    "AsyncCommand",
    "AsyncOutput",
    "AsyncSandbox",
    "AuthenticationError",
    "Command",
    "CommandResult",
    "Context",
    "Execution",
    "ExecutionError",
    "ExecutionFailed",
    "FileEvent",
    "FileInfo",
    "GatewayUnavailable",
    "InvalidRequest",
    "Logs",
    "NoRoom",
    "NotFound",
    "Output",
    "PermissionDenied",
    "QuotaExceeded",
    "RateLimited",
    "Result",
    "RuntimeUnavailable",
    "Sandbox",
    "SandboxEnded",
    "SandboxError",
    "SandboxInfo",
    "SandboxStatus",
    "SandboxTimeout",
    "SandboxWarning",
    "Start",
    "WarmPool",
    "WarmPoolStatus",
    "events",
    "get_warm_pool",
    "list_warm_pools",
]
