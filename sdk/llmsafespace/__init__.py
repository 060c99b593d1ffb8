"""LLMSafeSpace: run untrusted code in isolated, warm, real Jupyter kernels.

>>> from llmsafespace import Sandbox
>>> with Sandbox() as sandbox:
...     print(sandbox.run_code("print(6 * 7)").stdout)
42
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsafespace import events
    from llmsafespace.commands import AsyncCommand
    from llmsafespace.errors import (
        AuthenticationError,
        DirectoryNotEmpty,
        FileExists,
        FileNotFound,
        FilePermissionDenied,
        GatewayUnavailable,
        InvalidRequest,
        IsADirectory,
        MissingPath,
        NoRoom,
        NotADirectory,
        NotFound,
        PermissionDenied,
        QuotaExceeded,
        RateLimited,
        RuntimeUnavailable,
        SandboxEnded,
        SandboxError,
        SandboxTimeout,
    )
    from llmsafespace.models import (
        CommandResult,
        Context,
        FileEvent,
        FileInfo,
        SandboxInfo,
        SandboxStatus,
        Start,
    )
    from llmsafespace.outputs import AsyncOutput, SandboxWarning
    from llmsafespace.results import Execution, ExecutionError, ExecutionFailed, Logs, Result
    from llmsafespace.sandbox import AsyncSandbox
    from llmsafespace.sync import Sandbox
    from llmsafespace.sync_output import Output
    from llmsafespace.sync_parts import Command
    from llmsafespace.warm_pools import WarmPool, WarmPoolStatus, get_warm_pool, list_warm_pools

__all__ = [
    "AsyncCommand",
    "AsyncOutput",
    "AsyncSandbox",
    "AuthenticationError",
    "Command",
    "CommandResult",
    "Context",
    "DirectoryNotEmpty",
    "Execution",
    "ExecutionError",
    "ExecutionFailed",
    "FileEvent",
    "FileExists",
    "FileInfo",
    "FileNotFound",
    "FilePermissionDenied",
    "GatewayUnavailable",
    "InvalidRequest",
    "IsADirectory",
    "Logs",
    "MissingPath",
    "NoRoom",
    "NotADirectory",
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

# Where the names are, from light modules to heavy ones: `import llmsafespace` alone loads none of them.
_HOMES = ("errors", "models", "results", "events", "outputs", "commands", "sandbox", "sync", "warm_pools")


def _find(name: str) -> object:
    """A public name or a module of this package, imported now. Raises AttributeError."""
    if name in __all__:
        for home in map(_module, _HOMES):
            if name in vars(home):
                return vars(home)[name]
    try:
        return _module(name)
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def _module(name: str) -> object:
    return import_module(f"{__name__}.{name}")


if not TYPE_CHECKING:  # else type checkers would take every name for one that exists

    def __getattr__(name):
        found = globals()[name] = _find(name)
        return found

    def __dir__():
        return sorted({*globals(), *__all__})
