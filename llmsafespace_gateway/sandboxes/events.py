"""The typed events of an execution, as clients of REST and of the stream websocket see them."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Event(msgspec.Struct, rename="camel", tag_field="type", kw_only=True, frozen=True):
    """Something an execution did. `seq` is its place in the journal: reconnect with `after` this."""

    seq: int = 0


class Stdout(Event, tag="stdout", kw_only=True, frozen=True):
    """Text on standard output."""

    text: str


class Stderr(Event, tag="stderr", kw_only=True, frozen=True):
    """Text on standard error."""

    text: str


class Display(Event, tag="display", kw_only=True, frozen=True):
    """A rich output: a MIME bundle. `isMainResult` marks the value of the last expression."""

    data: dict[str, msgspec.Raw]
    metadata: dict[str, msgspec.Raw] = {}
    is_main_result: bool = False
    display_id: str | None = None


class Update(Event, tag="update", kw_only=True, frozen=True):
    """Replaces every earlier display with this `displayId`."""

    data: dict[str, msgspec.Raw]
    metadata: dict[str, msgspec.Raw] = {}
    display_id: str | None = None


class Clear(Event, tag="clear", kw_only=True, frozen=True):
    """Remove all output so far, text as well; `wait` true: when the next output comes."""

    wait: bool = False


class ErrorEvent(Event, tag="error", kw_only=True, frozen=True):
    """An exception reached the top, or the sandbox ended the execution (`name` then says why)."""

    name: str
    value: str
    traceback: list[str] = []


class InputRequest(Event, tag="input_request", kw_only=True, frozen=True):
    """The code waits for a line of input, which only the session that runs it can give."""

    prompt: str
    password: bool = False


class Missed(Event, tag="gap", kw_only=True, frozen=True):
    """`missed` messages were lost: too large, or beyond the journal's quota; `resume` is the next one."""

    missed: int
    resume: int


class End(Event, tag="end", kw_only=True, frozen=True):
    """The last event. `end` is ok, error, aborted, timeout, interrupted, oom, kernel_died or expired.

    `exitCode` is 0 for ok and 1 for every other end of code; a command's own, -N after signal N.
    """

    execution_id: str
    end: str
    exit_code: int
    message: str | None = None
    started_at: datetime
    completed_at: datetime
    execution_count: int | None = None
    context: str | None = None


class Failure(Event, tag="failure", kw_only=True, frozen=True):
    """The stream broke off and the execution may go on: follow it again with `after` the last `seq`."""

    code: str
    message: str


EventUnion = Stdout | Stderr | Display | Update | Clear | ErrorEvent | InputRequest | Missed | End | Failure
