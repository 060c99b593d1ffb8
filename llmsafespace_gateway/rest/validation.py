"""Request bodies to typed values, with messages that name the field, what was expected and what came."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.errors import invalid as invalid

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`?key`? in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`$", re.DOTALL)
_MAX_SHOWN = 60


def decode(body: bytes, of: Any) -> Any:
    """`body` as a value of type `of`. Raises ApiError(invalid_request)."""
    try:
        return msgspec.json.decode(body, type=of)
    except msgspec.ValidationError as error:
        raise _explained(str(error), body) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid("body", f"expected JSON, got something else: {detail[:200]}") from error


def _explained(message: str, body: bytes) -> ApiError:
    match = _AT.match(message)
    what, path, key = (match["what"], match["path"], match["key"]) if match else (message, None, None)
    field = "body" + (path or "$")[1:]
    if unknown := _UNKNOWN.match(what):
        name = f"{field}.{unknown['field'][:_MAX_SHOWN]}"
        return invalid(name, "is not a field of this request; see the API's documentation")
    if missing := _MISSING.match(what):
        return invalid(f"{field}.{missing['field']}", "is required, and was not sent")
    wrong = what[:1].lower() + what[1:].replace("`", "")
    if field.endswith((".cpu", ".memory", ".ephemeralStorage")) and wrong.startswith("expected"):
        example = '"500m" or a number of cores' if field.endswith(".cpu") else '"512Mi" or a number of bytes'
        wrong = f"expected {example}" + wrong[wrong.find(", got") :] if ", got" in wrong else wrong
    if "got" not in wrong and "[...]" not in field and not key:
        value = _at(body, path or "$")
        wrong += f", got {value}" if value is not None else ""
    return invalid(field, ("for each key, " if key else "") + wrong)


def _at(body: bytes, path: str) -> str | None:
    """The short text of the value at a msgspec error path, None when it cannot be shown."""
    try:
        value = msgspec.json.decode(body)
        for name, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
            value = value[name] if name else value[int(index)]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        return None
    if isinstance(value, str):
        text = msgspec.json.encode(value[:_MAX_SHOWN]).decode()
        return text if len(value) <= _MAX_SHOWN else f"{len(value)} characters"
    if isinstance(value, int | float | bool) or value is None:
        return msgspec.json.encode(value).decode()[:_MAX_SHOWN]
    return f"{len(value)} entries" if isinstance(value, list | dict) else None
