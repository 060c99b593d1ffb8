"""Limits that the layers share: what the REST API accepts, the custom resources and the agent accept."""

from __future__ import annotations

MAX_DURATION = 30 * 86_400  # seconds, of a lifetime, a time limit, a pool's ttl
MAX_NAME = 253  # characters, of an object of Kubernetes
MAX_DOMAIN = 253  # characters (RFC 1035, 2.3.4, without the final dot)
MAX_ARGUMENT = 128 * 1024 - 1  # bytes of a command line or an argument: MAX_ARG_STRLEN of execve(2) less NUL
MAX_EGRESS_RULES = 128
MAX_EGRESS_PORTS = 32  # of one rule
MAX_POOL_SIZE = 10_000  # sandboxes
MAX_SCALE_DOWN_DELAY = 86_400  # seconds
MAX_PRELOAD_PACKAGES = 256
MAX_PACKAGE_NAME = 128  # characters
MAX_PRELOAD_SCRIPTS = 8
MAX_PRELOAD_SCRIPT = 65_536  # characters
