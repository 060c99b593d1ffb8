"""Kernel messages in the `v1.kernel.websocket.jupyter.org` layout. Only the header is ever decoded here.

Layout (jupyter_server, "Websocket kernel wire protocols"): little-endian u64 `n`, then `n` u64 offsets,
then the parts: channel, header, parent_header, metadata, content, buffers. Offset `i` is where part `i`
begins; the last offset is the end of the message.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import msgspec

AGENT_SESSION = "llmsafespace-agent"  # of messages that the agent makes itself
CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})
_MAX_PARTS = 1024
# What decoding untrusted bytes can raise: they are not JSON, not UTF-8, or nested too deeply.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Header(msgspec.Struct, frozen=True):
    """The fields of a message header that routing needs. All other fields are passed on unchanged."""

    msg_id: str = ""
    msg_type: str = ""
    session: str = ""


class BadKernelMessage(ValueError):
    """The bytes are not a kernel message in the v1 layout."""


_header_decoder = msgspec.json.Decoder(Header)


def pack(channel: str, parts: Sequence[bytes | memoryview]) -> bytes:
    """Encode a message as v1 bytes. `parts` are header, parent_header, metadata, content, then buffers."""
    name = channel.encode()
    count = len(parts) + 2
    offset = 8 * (count + 1)
    offsets = [offset]
    offset += len(name)
    offsets.append(offset)
    for part in parts:
        offset += len(part)
        offsets.append(offset)
    return b"".join((struct.pack(f"<{count + 1}Q", count, *offsets), name, *parts))


def unpack(message: bytes | memoryview) -> tuple[str, list[memoryview]]:
    """Decode v1 bytes; return the channel and the parts (header, parent_header, metadata, content, buffers…).

    The parts are views of `message`, not copies. Raises BadKernelMessage if the offsets do not describe the
    bytes, or if the channel is unknown.
    """
    view = memoryview(message)
    if len(view) < 8:
        raise BadKernelMessage("shorter than its offset count")
    (count,) = struct.unpack_from("<Q", view)
    if not 6 <= count <= _MAX_PARTS or len(view) < 8 * (count + 1):
        raise BadKernelMessage(f"an offset count of {count} does not fit")
    offsets = struct.unpack_from(f"<{count}Q", view, 8)
    if offsets[0] != 8 * (count + 1) or offsets[-1] != len(view):
        raise BadKernelMessage("the offsets do not span the message")
    if any(a > b for a, b in itertools.pairwise(offsets)):
        raise BadKernelMessage("the offsets go backwards")
    parts = [view[a:b] for a, b in itertools.pairwise(offsets)]
    channel = bytes(parts[0]).decode("ascii", "replace")
    if channel not in CHANNELS:
        raise BadKernelMessage(f"unknown channel {channel[:40]!r}")
    return channel, parts[1:]


def header_of(part: bytes | memoryview) -> Header:
    """Decode the routing fields of a header part. Raises BadKernelMessage if it is not a message header."""
    try:
        return _header_decoder.decode(part)
    except UNREADABLE as error:
        raise BadKernelMessage(f"not a message header: {error}") from error
