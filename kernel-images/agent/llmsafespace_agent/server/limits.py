"""When the sandbox ends by itself: idle for too long, or too old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from llmsafespace_agent.server import validation
from llmsafespace_protocol.requests import Limits

_SOONEST = 0.01


def due(now: float, idle_since: float | None, born: float, limits: Limits, bound: bool) -> tuple[float, str]:
    """In how many seconds to look again (0: now is the end), and why the sandbox ends then.

    `idle_since` None means that something runs or somebody is connected. A warm sandbox that nobody has
    bound yet may be idle.
    """
    left = born + limits.max_lifetime - now
    reason = f"The sandbox has reached its maximum lifetime of {limits.max_lifetime:g} s."
    if bound and limits.idle_timeout is not None:
        since = now if idle_since is None else idle_since
        until_idle = since + limits.idle_timeout - now
        if until_idle < left:
            left = until_idle
            reason = f"The sandbox has been idle for {limits.idle_timeout:g} s."
    return max(0.0, left), reason


def check_limits(limits: Limits) -> None:
    """Refuse impossible limits. Raises AgentError."""
    validation.duration(limits.timeout, "timeout")
    validation.duration(limits.idle_timeout, "idleTimeout")
    validation.duration(limits.max_lifetime, "maxLifetime")


class LifeLimits:
    """Calls `expire(reason)` once, when a limit is reached. `idle_since` tells the present state."""

    def __init__(
        self, lifetime: float, idle_since: Callable[[], float | None], expire: Callable[[str], None]
    ) -> None:
        self._limits = Limits(timeout=None, idle_timeout=None, max_lifetime=lifetime)
        self._idle_since = idle_since
        self._expire = expire
        self._born = time.monotonic()
        self._bound = False
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    @property
    def expires_at(self) -> float:
        """When the lifetime ends, in seconds since the epoch."""
        return time.time() + self._born + self._limits.max_lifetime - time.monotonic()

    def set(self, limits: Limits) -> None:
        """Other limits from now on. Raises AgentError for impossible ones."""
        check_limits(limits)
        self._limits = limits
        self.watch()

    def bound(self, limits: Limits) -> None:
        """The sandbox is somebody's from now on: its lifetime begins. Raises AgentError."""
        self._bound = True
        self._born = time.monotonic()
        self.set(limits)

    def execution_timeout(self, wished: float | None) -> float | None:
        """The time limit of a durable execution that wishes for `wished`."""
        limit = self._limits.timeout
        if limit is None or wished is None:
            return wished if limit is None else limit
        return min(wished, limit)

    def watch(self) -> None:
        """Look now, and again when something can be due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._over:
            return
        left, reason = due(time.monotonic(), self._idle_since(), self._born, self._limits, self._bound)
        if left == 0.0:
            self._over = True
            self._expire(reason)
            return
        self._timer = asyncio.get_running_loop().call_later(max(left, _SOONEST), self.watch)

    def close(self) -> None:
        """Watch no more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
