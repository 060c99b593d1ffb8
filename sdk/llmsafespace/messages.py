"""Kernel messages as bytes: the `v1.kernel.websocket.jupyter.org` layout and our sequence numbers.

Layout (Jupyter Server documentation, "Websocket kernel wire protocols"): little-endian u64 `n`, then `n`
u64 offsets, then the parts: channel, header, parent_header, metadata, content, buffers. Offset `i` is where
part `i` begins; the last is the message's length. In the durable subprotocol each message from the gateway
is preceded by its sequence number, a big-endian u64.
"""

from __future__ import annotations

import getpass
import itertools
import struct
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from llmsafespace.decoding import BadMessage, TooDeep, decode_object

DURABLE = "v1.durable.llmsafespace.dev"
PROTOCOL_VERSION = "5.4"
_SEQUENCE = struct.Struct(">Q")
_encode = msgspec.json.Encoder().encode


class Header(msgspec.Struct, frozen=True):
    """The fields of a header that routing needs."""

    msg_id: str = ""
    msg_type: str = ""
    session: str = ""


class Message(msgspec.Struct, frozen=True):
    """One kernel message; the parts are decoded when asked for."""

    channel: str
    parts: Sequence[bytes | memoryview]
    seq: int = 0

    def header(self) -> Header:
        """The message's own header."""
        return decode_header(self.parts[0])

    def parent(self) -> Header:
        """The header of the request that this message answers; empty where there is none."""
        return decode_header(self.parts[1])

    def metadata(self) -> dict[str, Any]:
        """The metadata part."""
        return decode_object(self.parts[2])

    def content(self) -> dict[str, Any]:
        """The content part."""
        return decode_object(self.parts[3])


_decode_header = msgspec.json.Decoder(Header).decode


def decode_header(part: bytes | memoryview) -> Header:
    """The routing fields of a header part. Raises BadMessage."""
    try:
        return _decode_header(part)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"not a message header: {error}") from error
    except RecursionError:
        raise TooDeep("the message header is nested too deeply") from None


def pack(channel: str, parts: Sequence[bytes | memoryview]) -> bytes:
    """The v1 bytes of a message whose `parts` are header, parent_header, metadata, content, buffers."""
    name = channel.encode("ascii")
    count = len(parts) + 2
    sizes = (8 * (count + 1), len(name), *(len(part) for part in parts))
    return b"".join((struct.pack(f"<{count + 1}Q", count, *itertools.accumulate(sizes)), name, *parts))


def unpack(data: bytes | memoryview) -> Message:
    """The message in v1 bytes. Raises BadMessage."""
    view = memoryview(data)
    if len(view) < 8:
        raise BadMessage("too short")
    (count,) = struct.unpack_from("<Q", view)
    if not 6 <= count <= len(view) // 8 - 1:
        raise BadMessage(f"an offset count of {count} does not fit")
    offsets = struct.unpack_from(f"<{count}Q", view, 8)
    bounds = list(itertools.pairwise(offsets))
    if offsets[0] != 8 * (count + 1) or offsets[-1] != len(view) or any(a > b for a, b in bounds):
        raise BadMessage("the offsets do not describe the message")
    parts = [view[a:b] for a, b in bounds]
    return Message(bytes(parts[0]).decode("ascii", "replace"), parts[1:])


def unpack_durable(data: bytes | memoryview) -> Message:
    """The message in a frame of the durable subprotocol, with its sequence number. Raises BadMessage."""
    view = memoryview(data)
    if len(view) < 8:
        raise BadMessage("too short for a sequence number")
    message = unpack(view[8:])
    return Message(message.channel, message.parts, _SEQUENCE.unpack_from(view)[0])


def new_id() -> str:
    """A fresh id for an execution, a session, a context."""
    return uuid.uuid4().hex


def header(msg_type: str, session: str, msg_id: str | None = None) -> dict[str, str]:
    """A message header (Jupyter messaging, "Message header")."""
    return {
        "msg_id": msg_id or new_id(),
        "msg_type": msg_type,
        "username": _username(),
        "session": session,
        "date": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z"),
        "version": PROTOCOL_VERSION,
    }


def build(
    channel: str,
    message_header: Mapping[str, Any],
    content: Mapping[str, Any],
    *,
    parent: bytes | memoryview = b"{}",
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """The v1 bytes of a new message. `parent` is the raw header of the message that is answered."""
    return pack(channel, [_encode(message_header), parent, _encode(metadata or {}), _encode(content)])


def _username() -> str:
    global _user
    if _user is None:
        try:
            _user = getpass.getuser()
        except (OSError, KeyError, ImportError):
            _user = "sdk"
    return _user


_user: str | None = None
