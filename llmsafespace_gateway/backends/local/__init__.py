"""Sandboxes on this machine: bubblewrap, one keeper process each, warm pools."""

from llmsafespace_gateway.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
