"""How many connections are served, and how long a silent one may take."""

from __future__ import annotations

from typing import Any

import msgspec

_MOST = 10_000
_RESERVE = 128  # descriptors for the store, sandboxes, egress and everything else, and at least an eighth
_PER_CONNECTION = 2  # its own descriptor, and the one to a sandbox's agent


class ServingLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the HTTP server; times are seconds.

    `head`: from the first byte (or the connect) to the end of a request's head. `idle`: between two
    requests. `stalled`: for a client that does not take what is sent to it. `descriptor`: from this
    descriptor on a new connection has no room, whatever the other numbers say.
    """

    connections: int
    per_address: int
    descriptor: int
    head: float = 15.0
    idle: float = 75.0
    stalled: float = 300.0
    body_window: float = 60.0  # in which the client must send `body_least` bytes of a body
    body_least: int = 1024
    sent_least: int = 4096  # bytes that a client must take in `stalled` seconds


def reserve(descriptors: int) -> int:
    """Descriptors that no connection gets, of so many."""
    return min(max(_RESERVE, descriptors // 8), descriptors // 2)


def serving_limits(
    descriptors: int, connections: int = 0, per_address: int = 0, **times: Any
) -> ServingLimits:
    """The limits of a process with so many descriptors; a 0 is chosen by them."""
    kept = reserve(descriptors)
    room = max((descriptors - kept) // _PER_CONNECTION, 1)
    most = min(connections or _MOST, room)
    each = min(per_address or max(most // 4, 1), most)
    return ServingLimits(connections=most, per_address=each, descriptor=descriptors - kept // 2, **times)
