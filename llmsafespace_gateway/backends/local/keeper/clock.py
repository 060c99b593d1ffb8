"""When a keeper ends its sandbox, whatever the agent in there does: a second clock, out of the code's reach.

Code can slow its agent down, stop it or, at worst, take it over. So two limits are kept here as well:

* The lifetime. The gateway writes when it is over (monotonic seconds, which all processes of a machine
  share) to the file `until` in the sandbox's folder, and sends SIGHUP. The agent cannot write there. The
  file is also read when the gateway is gone: it may have died between a claim and its signal.
* A running execution's time limit. Before the agent lets something with a limit run, it writes the moment by
  which it will have ended it, grace included, to a pipe: 8 bytes, little-endian, milliseconds of that clock;
  0 when there is none any more. What was said last counts: an agent that cannot take it back (frozen,
  starved, cut off) has its sandbox ended then. One that lies can shorten its own life, and never lengthen it.

Nothing here wakes up before something is due.
"""

# ruff: noqa: SIM105  # contextlib would cost each keeper a few milliseconds and more memory

from __future__ import annotations

import os
import time

from .files import read_file

WORDS = {
    "timeout": "an execution ran past its time limit, and the sandbox's agent did not end it",
    "expired": "the sandbox outlived its maximum lifetime, and its agent did not end it",
}
_REST = 0.1  # seconds between two readings of a pipe that is written to all the time
_LONGEST = 86_400_000  # milliseconds of one wait; poll takes no more than 24 days


class Clock:
    """`pipe` is the reading end of the agent's pipe, `folder` the sandbox's."""

    def __init__(self, pipe: int, folder: str) -> None:
        self.pipe = pipe
        self._until_file = f"{folder}/until"
        self._cut = b""  # of a moment that has not been read whole
        self._run_by: float | None = None
        self._live_until: float | None = None
        self._read_at = 0.0
        self.resting = False
        os.set_blocking(pipe, False)
        self.look()

    def look(self) -> None:
        """Read again how long the sandbox may live. What was known stays where that cannot be read."""
        try:
            self._live_until = float(read_file(self._until_file))
        except ValueError:
            pass  # nobody's yet, or too many files are open on this machine

    def listen(self) -> bool:
        """Read what the agent has written; False at the end of it. What was said before that goes on."""
        now = time.monotonic()
        self.resting = now - self._read_at < _REST
        self._read_at = now
        try:
            piece = os.read(self.pipe, 65536)
        except BlockingIOError:
            return True
        if not piece:
            return False
        said = self._cut + piece
        whole = len(said) - len(said) % 8
        self._cut = said[whole:]
        if whole:
            moment = int.from_bytes(said[whole - 8 : whole], "little")
            self._run_by = moment / 1000 if moment else None
        return True

    def rested(self) -> bool:
        """Whether a pipe that was written to all the time is to be read again from now on."""
        if not self.resting or time.monotonic() < self._read_at + _REST:
            return False
        self.resting = False
        return True

    def over(self) -> str | None:
        """The word for what is over now, if anything is."""
        now = time.monotonic()
        if self._live_until is not None and not now < self._live_until:
            return "expired"
        if self._run_by is not None and now >= self._run_by:
            return "timeout"
        return None

    def wait(self) -> int | None:
        """Milliseconds until something is due, None when nothing ever is."""
        moments = [moment for moment in (self._live_until, self._run_by) if moment is not None]
        if self.resting:
            moments.append(self._read_at + _REST)
        if not moments:
            return None
        left = max(0.0, min(moments) - time.monotonic())
        return min(_LONGEST, int(left * 1000) + 1)
