"""Messages of kernels that are not ours, made the JSON that every client can read.

ipykernel for one writes bytes that are no UTF-8 where code printed them, and others write NaN.
"""

from __future__ import annotations

import json

import msgspec

from llmsafespace_agent.kernels.launcher.llmsafespace_kernel.encodable import encodable
from llmsafespace_protocol.kernel_messages import UNREADABLE

_LARGEST = 4 * 1024 * 1024  # bytes of a part that is repaired; a larger one takes the agent too long
_raw = msgspec.json.Decoder(msgspec.Raw)


def repaired(parts: list[bytes]) -> list[bytes]:
    """The parts of a message, parent, metadata and content as strict JSON; what is none stays as it is."""
    return [parts[0], *map(_repaired, parts[1:4]), *parts[4:]]


def _repaired(part: bytes) -> bytes:
    try:
        part.decode()
        _raw.decode(part)
    except UNREADABLE:
        if len(part) > _LARGEST:
            return part
        try:
            text = encodable(part.decode("utf-8", "surrogateescape"), json=True)
            document = json.loads(text, parse_constant=lambda name: name)
            return encodable(json.dumps(document, ensure_ascii=False), json=True).encode()
        except (ValueError, RecursionError):
            return part
    return part
