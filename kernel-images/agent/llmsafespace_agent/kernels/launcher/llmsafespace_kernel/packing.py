"""Messages to JSON: what jupyter_client's own packer writes, faster where orjson can say the same."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from jupyter_client.jsonutil import json_default
from jupyter_client.session import json_packer

try:
    import orjson
except ImportError:
    _dumps = None
else:
    _dumps = orjson.dumps
    _OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS  # json_default knows better


def pack(document: Any) -> bytes:
    """The JSON of a part of a message. Raises what jupyter_client's packer raises.

    orjson refuses big integers, keys that are no text and lone surrogates, which json_packer then gets. It
    writes `null` for numbers that are not finite, where json_packer writes their names.
    """
    packed: bytes | None = None
    if _dumps is not None:
        with contextlib.suppress(Exception):
            packed = _dumps(document, default=json_default, option=_OPTIONS)
    if packed is None or (b"null" in packed and _has_strange_number(document)):
        packed = json_packer(document)
    return packed


def _has_strange_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_strange_number, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_strange_number, value))
    return False
