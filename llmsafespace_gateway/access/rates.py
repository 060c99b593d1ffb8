"""Rate limits: token buckets, in this process."""

from __future__ import annotations

import collections
import math
import time

from llmsafespace_gateway.errors import ApiError

EXECUTIONS_AT_ONCE = 5  # times the requests that may be made at once


class Buckets:
    """A token bucket per name: `burst` at once, `rate` per second for long. Full buckets cost no memory."""

    def __init__(self, rate: float, burst: int, most: int = 50_000) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(
                f"a rate limit needs a rate above 0 and a burst of at least 1, not {rate}, {burst}"
            )
        self.rate = rate
        self.burst = burst
        self._most = most
        self._levels: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def level(self, name: str, now: float) -> float:
        """Tokens left in a bucket."""
        tokens, at = self._levels.get(name, (float(self.burst), now))
        return min(float(self.burst), tokens + max(0.0, now - at) * self.rate)

    def take(self, name: str, now: float) -> tuple[bool, float]:
        """Take a token: whether there was one, and the tokens left."""
        tokens = self.level(name, now)
        taken = tokens >= 1
        if taken:
            tokens -= 1
        self._levels[name] = (tokens, now)
        self._levels.move_to_end(name)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return taken, tokens


def limit_headers(buckets: Buckets, tokens: float, wall_clock: float) -> dict[str, str]:
    """X-RateLimit-Limit (requests at once), -Remaining (left now), -Reset (epoch second when it is full)."""
    reset = wall_clock + (buckets.burst - tokens) / buckets.rate
    return {
        "X-RateLimit-Limit": str(buckets.burst),
        "X-RateLimit-Remaining": str(int(tokens)),
        "X-RateLimit-Reset": str(math.ceil(reset)),
    }


class RateLimited(ApiError):
    """Too many requests; `headers` go with the answer."""

    def __init__(self, message: str, retry_after: float, headers: dict[str, str]) -> None:
        super().__init__("rate_limited", message, retry_after=retry_after)
        self.headers = headers


class RateLimits:
    """The limits of keys, and of addresses that present bad keys."""

    def __init__(self, rate: float, burst: int, failure_rate: float = 1.0, failure_burst: int = 20) -> None:
        self._keys = Buckets(rate, burst)
        # A notebook that is run as a whole sends all its cells at once.
        self._executions = Buckets(rate, burst * EXECUTIONS_AT_ONCE)
        self._failures = Buckets(failure_rate, failure_burst)

    def request(self, key_id: str) -> dict[str, str]:
        """Count a request of a key; the headers for its answer. Raises RateLimited."""
        taken, tokens = self._keys.take(key_id, time.monotonic())
        headers = limit_headers(self._keys, tokens, time.time())
        if taken:
            return headers
        wait = max((1 - tokens) / self._keys.rate, 0.001)
        message = (
            f"this key may make {self._keys.burst} requests at once and {self._keys.rate:g} per second; "
            f"wait {wait:.2f} s"
        )
        raise RateLimited(message, wait, headers)

    def execution(self, key_id: str) -> None:
        """Count an execution that a key asks for over a websocket. Raises RateLimited."""
        buckets = self._executions
        taken, tokens = buckets.take(key_id, time.monotonic())
        if not taken:
            wait = max((1 - tokens) / buckets.rate, 0.001)
            message = (
                f"this key may start {buckets.burst} executions at once and {buckets.rate:g} per second; "
                f"wait {wait:.2f} s"
            )
            raise RateLimited(message, wait, limit_headers(buckets, tokens, time.time()))

    def failure(self, address: str) -> None:
        """Count a bad key from an address. Raises RateLimited; a good key from there is never refused."""
        taken, tokens = self._failures.take(address, time.monotonic())
        if not taken:
            wait = max((1 - tokens) / self._failures.rate, 0.001)
            raise RateLimited(
                "too many requests with a bad API key from this address; use a valid key", wait, {}
            )
