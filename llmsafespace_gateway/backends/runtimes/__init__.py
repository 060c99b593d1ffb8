"""Runtimes of the local backend: interpreters found, environments prepared once, requests resolved."""

from llmsafespace_gateway.backends.runtimes.preparation import BASE_PACKAGES, DEFAULT_PACKAGES
from llmsafespace_gateway.backends.runtimes.prepared import HostView, PreparedRuntime
from llmsafespace_gateway.backends.runtimes.progress import Progress, Step
from llmsafespace_gateway.backends.runtimes.runtimes import Runtimes, default_cache_dir

__all__ = [
    "BASE_PACKAGES",
    "DEFAULT_PACKAGES",
    "HostView",
    "PreparedRuntime",
    "Progress",
    "Runtimes",
    "Step",
    "default_cache_dir",
]
