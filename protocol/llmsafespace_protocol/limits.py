"""Limits that the REST API and the custom resources share: what one of them accepts, the other accepts."""

from __future__ import annotations

MAX_DURATION = 30 * 86_400  # seconds, of a lifetime, a time limit, a pool's ttl
MAX_NAME = 253  # characters, of an object of Kubernetes
MAX_DOMAIN = 253  # characters (RFC 1035, 2.3.4, without the final dot)
MAX_EGRESS_RULES = 128
MAX_EGRESS_PORTS = 32  # of one rule
MAX_POOL_SIZE = 10_000  # sandboxes
MAX_SCALE_DOWN_DELAY = 86_400  # seconds
MAX_PRELOAD_PACKAGES = 256
MAX_PACKAGE_NAME = 128  # characters
MAX_PRELOAD_SCRIPTS = 8
MAX_PRELOAD_SCRIPT = 65_536  # characters
