"""Structured logs: one JSON object a line. Never a body, a key, a query string or a header value."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import threading
import time
from typing import Any

_KINDS = 1000
_TELL_EVERY = 1.0  # seconds
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
        return json.dumps(line, ensure_ascii=False, default=str)


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
    """A line in the shape of the log, for what does not go through it."""
    said = {"time": _moment(time.time()), "level": level, "logger": logger, "message": message}
    return json.dumps(said, ensure_ascii=False)


def configure(level: int | str, application: logging.Logger) -> None:
    """One stream of JSON on standard error for everything: `application` (traitlets' own logger, which has a
    format of its own until now), libraries, warnings, and exceptions that nobody caught.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
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
