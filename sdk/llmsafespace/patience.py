"""How long a gateway may be away before a call gives up.

A call that was broken off is tried again, with longer and longer pauses. Time counts **from the break**: from
the first failure after the gateway was last heard, never from when the connection or the call began. So an
old connection has as much patience as a young one, and a second break has as much as the first.

A gateway that is heard only for moments (each connection breaks before it brings anything new) must not keep
a call for ever. A connection that brought something new (`heard`), or outlived the whole patience, starts the
count anew any number of times; one that only lasted a while does so a limited number of times. After that its
time does not count either, but each such connection costs some of the patience.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from llmsafespace.errors import GatewayUnavailable

if TYPE_CHECKING:
    from llmsafespace.transport import Transport

RETRY_FOR = 60.0  # seconds to ride out a gateway that restarts
FIRST_CONTACT = 3.0  # seconds to try when nothing ever answered at this address: the URL may be wrong
BUSY_FOR = 10.0  # seconds to repeat what the gateway itself answers with "unavailable" from the start
STABLE = 5.0  # seconds after which a connection counts as one that worked
_MOST_SPELLS = 10  # connections in a row that lasted a while, brought nothing new, and cost nothing
_SPELL_COST = 10.0  # seconds of patience that each further one costs
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 1.0


def now() -> float:
    """The clock of all limits in this package, in seconds; tests replace it."""
    return time.monotonic()


class Patience:
    """Waits between the attempts of one call, until the gateway has been away for too long."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._since: float | None = None  # when it broke
        self._delay = _FIRST_DELAY
        self._busy = True  # it only ever answered that it cannot serve now
        self._spells = 0

    def heard(self) -> None:
        """Something new has come: what failed before no longer counts."""
        if self._since is not None or self._spells or self._busy:
            self._since, self._delay, self._spells, self._busy = None, _FIRST_DELAY, 0, False

    async def wait(self, error: BaseException | None, *, held: float = 0.0) -> None:
        """Pause before the next attempt. `held`: how many seconds the attempt that failed had a connection.

        `error` is what went wrong; a GatewayUnavailable is the gateway's own refusal, whose Retry-After is
        kept, and which is raised itself in the end. Raises GatewayUnavailable when patience is at its end.
        """
        refusal = error if isinstance(error, GatewayUnavailable) else None
        if held >= STABLE:
            self._lasted(held)
        self._busy = self._busy and refusal is not None and refusal.by_gateway
        if self._since is None:
            self._since = now()
        left = self._since + self._limit() - now()
        pause = max(self._delay, (refusal.retry_after or 0.0) if refusal is not None else 0.0)
        if left < 0 or (pause > self._delay and pause > left):
            raise refusal or self._given_up(error) from error
        await asyncio.sleep(pause)
        self._delay = min(self._delay * 1.6, _LONGEST_DELAY)

    def _lasted(self, held: float) -> None:
        self._delay = _FIRST_DELAY
        self._spells = 0 if held >= RETRY_FOR else self._spells + 1
        if self._spells <= _MOST_SPELLS or self._since is None:
            self._since = None
        else:
            self._since += max(0.0, held - _SPELL_COST)

    def _limit(self) -> float:
        if self._busy:
            return BUSY_FOR
        return RETRY_FOR if self._transport.reached else FIRST_CONTACT

    def _given_up(self, error: BaseException | None) -> GatewayUnavailable:
        endpoint = self._transport.endpoint
        why = f" ({str(error) or type(error).__name__})" if error is not None else ""
        return GatewayUnavailable(
            f"no gateway answers at {endpoint.socket or endpoint.url}{why}: "
            f"tried again for {self._limit():g} s; is it running, and is the URL right?"
        )
