"""What a kernel may say: its messages without whatever only the agent may tell.

Code in the sandbox can write what it likes to its kernel's sockets. The agent's own words are the metadata
`llmsafespace` (how an execution ended), the states of a kernel beyond busy and idle, sequence numbers, gaps.
The last two are not part of a message; the first two are taken out here. Streams and displays have empty
metadata, so that it costs them one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from llmsafespace_protocol.kernel_messages import UNREADABLE

TOO_LARGE = "llmsafespace_too_large"  # our own kernel's word for a message that it could not send
MAX_PARTS = 1000  # header, parent, metadata, content and buffers; a reader takes a few more
STATES = frozenset({"starting", "busy", "idle"})
_OURS = "llmsafespace"
_EMPTY = b"{}"
_metadata = msgspec.json.Decoder(dict[str, msgspec.Raw])


class TooLarge(msgspec.Struct):
    """The content of our kernel's word for a message that it could not send."""

    msg_type: str
    size: int


_too_large = msgspec.json.Decoder(TooLarge)


def cleaned(parts: Sequence[bytes]) -> list[bytes]:
    """`parts` with a parent and metadata that are JSON, the metadata without the agent's words."""
    return [parts[0], _parent(parts[1]), _clean_metadata(parts[2]), *parts[3:]]


def is_clean(parts: Sequence[bytes]) -> bool:
    """Whether nothing has to be looked at: by far most messages."""
    return parts[2] == _EMPTY and len(parts[1]) > len(_EMPTY)


def _parent(part: bytes) -> bytes:
    return part if len(part) > len(_EMPTY) else _EMPTY


def _clean_metadata(part: bytes) -> bytes:
    if part == _EMPTY:
        return part
    try:
        found = _metadata.decode(part.decode())  # some clients ignore bytes that are no UTF-8
    except UNREADABLE:
        return _EMPTY  # another decoder might read it differently
    if _OURS not in found:
        return part
    del found[_OURS]
    return msgspec.json.encode(found)


def too_large(content: bytes) -> TooLarge:
    """What the kernel could not send. Never raises: the kernel may write anything here."""
    try:
        return _too_large.decode(content)
    except UNREADABLE:
        return TooLarge("a message", 0)
