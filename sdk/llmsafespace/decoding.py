"""Decodes JSON that came from a sandbox, directly or through the gateway, and bounds it.

Code in a sandbox writes what it likes. Values nested deeper than MAX_DEPTH are refused here, in one place:
how deep Python itself can go differs by version, and what is decoded must also be printable.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

MAX_DEPTH = 200


class BadMessage(ValueError):
    """The bytes cannot be decoded as a kernel message or as JSON."""


class TooDeep(BadMessage):
    """The JSON is nested deeper than MAX_DEPTH."""


def decode_json(data: bytes | bytearray | memoryview | str) -> Any:
    """The value of a JSON text; NaN and broken UTF-8 are understood. Raises BadMessage, TooDeep."""
    try:
        value = _decode(data)
    except RecursionError:
        raise TooDeep(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise BadMessage(f"not JSON: {error}") from error
    if _is_deep(value):
        raise TooDeep(f"nested deeper than {MAX_DEPTH} levels")
    return value


def decode_object(data: bytes | bytearray | memoryview | str) -> dict[str, Any]:
    """A JSON object, as decode_json reads it. Raises BadMessage, TooDeep."""
    value = decode_json(data)
    if not isinstance(value, dict):
        raise BadMessage("not a JSON object")
    return value


def _decode(data: bytes | bytearray | memoryview | str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return json.loads(data if isinstance(data, str) else bytes(data).decode("utf-8", "replace"))


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        children = (each.values() if isinstance(each, dict) else each for each in level)
        level = [child for some in children for child in some if isinstance(child, (dict, list))]
        if not level:
            return False
    return True
