"""Messages to JSON: what jupyter_client's own packer writes, faster where orjson can say the same.

Text that JSON cannot say is spelt out (see encodable), where jupyter_client raises or writes broken UTF-8.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default

from .encodable import encodable

_LONG = 16 * 1024  # bytes
_FEW = 200  # values

try:
    import orjson
except ImportError:
    _dumps = None
else:
    _dumps = orjson.dumps
    _OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS  # json_default knows better


def pack(document: Any) -> bytes:
    """The JSON of a part of a message. Raises what jupyter_client's packer raises for what is no JSON.

    orjson refuses big integers, keys that are no text and lone surrogates, which the json module then gets.
    It writes `null` for numbers that are not finite, where jupyter_client writes their names.
    """
    packed: bytes | None = None
    if _dumps is not None:
        with contextlib.suppress(Exception):
            packed = _dumps(document, default=json_default, option=_OPTIONS)
    if packed is None or _is_doubtful(document, packed):
        packed = _pack_slowly(document)
    return packed


def _pack_slowly(document: Any) -> bytes:
    try:
        text = _to_json(document)
    except (TypeError, ValueError):
        text = _to_json(json_clean(document))
    return encodable(text, json=True).encode()


def _to_json(document: Any) -> str:
    return json.dumps(document, default=json_default, ensure_ascii=False, allow_nan=False)


def unpack(packed: str | bytes) -> Any:
    """The document in a part of a message. orjson would read big integers as floats."""
    return json.loads(packed.decode("utf-8", "replace") if isinstance(packed, bytes) else packed)


def _is_doubtful(document: Any, packed: bytes) -> bool:
    """Whether a `null` may be a number. In a long text the search for it costs more than the packing."""
    if len(packed) > _LONG and _is_plain(document):
        return False
    return b"null" in packed and _has_strange_number(document)


def _is_plain(document: Any) -> bool:
    """Whether a look at few values shows that none is a number with a fraction."""
    waiting = [document]
    looked = 0
    while waiting:
        value = waiting.pop()
        looked += 1
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, float):
            return False
        if looked + len(waiting) > _FEW:
            return False
    return True


def _has_strange_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_strange_number, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_strange_number, value))
    return False
