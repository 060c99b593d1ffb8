"""Logs: one JSON object a line for machines, one readable line for people at a terminal.

Never a body, a key, a query string or a header value. What code in a sandbox or a client chose (names,
paths, errors) may be part of a line: control characters in it are escaped in both formats, so that nobody
can write a line of their own, or to the terminal of whoever reads it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import threading
import time
from typing import Any

_KINDS = 1000
_TELL_EVERY = 1.0  # seconds
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# Control characters (C0, DEL, C1), the line ends of Unicode, marks that reverse the direction of text, and
# halves of surrogate pairs, which no terminal or decoder takes.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SECRETS = re.compile(r"(?P<before>[?&]token=)[^&\s\"'#]+|lsp_[0-9a-f]{16}_[0-9a-f]{8,}")
_LEVELS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}  # terminal colours


def visible(text: str) -> str:
    """`text` on one line, with each character that is not printed written as an escape."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def without_secrets(text: str) -> str:
    """`text` without API keys and without values of `token` in URLs, wherever they came from."""
    return _SECRETS.sub(lambda found: f"{found['before'] or 'lsp_'}[removed]", text)


def _dumped(line: dict[str, Any]) -> str:
    # json escapes C0 alone; the escapes of `visible` are JSON's own.
    return visible(json.dumps(line, ensure_ascii=False, default=str))


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON; `extra={"fields": {…}}` adds fields of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        line: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update(fields)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_secrets(_dumped(line))


class TextFormatter(logging.Formatter):
    """A log record as a line for people: time, level, message, fields; an exception below it, indented."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its last newline."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():<8}"
        if self._colours and record.levelname in _LEVELS:
            level = f"\x1b[{_LEVELS[record.levelname]}m{level}\x1b[0m"
        fields = getattr(record, "fields", None)
        told = [f"{name}={value}" for name, value in fields.items() if value is not None] if fields else []
        said = visible(without_secrets("  ".join((record.getMessage(), *told))))
        line = f"{clock} {level} {said}"
        if record.exc_info:
            trace = without_secrets(self.formatException(record.exc_info)).split("\n")
            line += "".join(f"\n    {visible(each)}" for each in trace)
        return line


class Flood(logging.Filter):
    """Lets so many lines of a kind pass: what code or strangers can cause must not fill the disk.

    A kind is a logger's message before its values are put in. How many lines were left out is said once the
    kind is within its bounds again, or has been beyond them for a while. Errors of our own and critical lines
    are counted as well: a fault that repeats fills the disk like anything else.
    """

    def __init__(self, rate: float = 200.0, burst: int = 2000, clock: Any = time.monotonic) -> None:
        super().__init__()
        self._rate, self._burst, self._clock = rate, burst, clock
        self._kinds: dict[tuple[str, str], list[float]] = {}  # tokens, at, left out, told at

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        now = self._clock()
        kind = (record.name, str(record.msg))
        if len(self._kinds) > _KINDS:
            self._kinds.clear()
        state = self._kinds.setdefault(kind, [float(self._burst), now, 0, now])
        tokens = min(float(self._burst), state[0] + (now - state[1]) * self._rate)
        passes = bool(tokens >= 1)
        state[0], state[1] = tokens - passes, now
        if not passes:
            state[2] += 1
            if now - state[3] < _TELL_EVERY:
                return False
            passes = True
        if state[2]:
            fields = getattr(record, "fields", None)
            left_out = {"left_out": int(state[2])}
            record.fields = fields | left_out if isinstance(fields, dict) else left_out
            state[2] = 0
        state[3] = now
        return passes


def _moment(seconds: float) -> str:
    thousandths = int(seconds % 1 * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{thousandths:03d}Z"


def line(level: str, logger: str, message: str) -> str:
    """A line of JSON in the shape of the log, for what does not go through it: the first key is shown."""
    said = {"time": _moment(time.time()), "level": level, "logger": logger, "message": message}
    return _dumped(said)


def configure(level: int | str, application: logging.Logger, as_json: bool) -> None:
    """One stream on standard error for everything: `application` (traitlets' own logger, which has a format
    of its own until now), libraries, warnings, and exceptions that nobody caught.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(_takes_colours()))
    handler.addFilter(Flood())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    application.handlers = []
    application.propagate = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _takes_colours() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _uncaught(kind: Any, error: Any, traceback: Any) -> None:
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logging.getLogger("llmsafespace_gateway").critical(
        "uncaught exception", exc_info=(kind, error, traceback)
    )


def request_id(sent: str | None) -> str:
    """The client's own X-Request-Id where it is a harmless one, else a new one."""
    if sent is not None and _REQUEST_ID.fullmatch(sent):
        return sent
    return secrets.token_hex(8)
