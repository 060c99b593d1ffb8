"""The three subprotocols of a kernel's websocket: how a kernel message looks in a frame.

The gateway holds messages as `u64 seq | v1 bytes`, as the agent sends them (see llmsafespace_protocol).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import struct

import msgspec

from llmsafespace_gateway.services.types import BINARY, TEXT, Codec, Incoming, OddMessage, WrongFrame
from llmsafespace_protocol.kernel_messages import (
    CHANNELS,
    UNREADABLE,
    BadKernelMessage,
    header_of,
    pack,
    unpack,
)
from llmsafespace_protocol.requests import Error

V1 = "v1.kernel.websocket.jupyter.org"
DURABLE = "v1.durable.llmsafespace.dev"
_SEQ = 8
_MAX_BUFFERS = 1024
_MAX_ODD = 1024 * 1024
_encode = msgspec.json.Encoder().encode


class V1Codec:
    """`v1.kernel.websocket.jupyter.org`: a sequence number less, nothing parsed."""

    def to_client(self, body: bytes) -> tuple[int, bytes | memoryview]:
        """The websocket opcode and payload of a message of the agent's."""
        return BINARY, memoryview(body)[_SEQ:]

    def from_client(self, message: str | bytes) -> Incoming:
        """A client's frame. Raises WrongFrame, BadKernelMessage."""
        if isinstance(message, str):
            raise WrongFrame("this subprotocol takes binary frames only")
        channel, parts = unpack(message)
        return channel, parts[0], message

    def gap(self, missed: int, resume: int) -> bytes | None:
        """No frame of its own."""
        return None

    def error(self, error: Error) -> bytes | None:
        """No frame of its own."""
        return None


class DurableCodec(V1Codec):
    """`v1.durable.llmsafespace.dev`: to the client `u64 seq (big-endian) | v1`, from the client `v1`."""

    def to_client(self, body: bytes) -> tuple[int, bytes | memoryview]:
        """The agent's bytes as they are."""
        return BINARY, body

    def gap(self, missed: int, resume: int) -> bytes | None:
        """`{"gap": {"missed": n, "resume": seq}}`."""
        return _encode({"gap": {"missed": missed, "resume": resume}})

    def error(self, error: Error) -> bytes | None:
        """`{"error": {"code": …, "message": …, "details": {…}}}`, as REST has it."""
        details = {"code": error.code, "message": error.message, "details": error.details}
        return _encode({"error": details})


class _Legacy(msgspec.Struct):
    header: msgspec.Raw
    parent_header: msgspec.Raw = msgspec.Raw(b"{}")
    metadata: msgspec.Raw = msgspec.Raw(b"{}")
    content: msgspec.Raw = msgspec.Raw(b"{}")
    channel: str | None = None


_legacy = msgspec.json.Decoder(_Legacy)


class LegacyCodec:
    """No subprotocol: JSON text frames; binary frames for messages that have buffers, and for no others."""

    def to_client(self, body: bytes) -> tuple[int, bytes | memoryview]:
        """The JSON text, joined from parts that are JSON already. Raises BadKernelMessage.

        The content comes first: were it no JSON but text that adds members to the object, those of the same
        names that follow would take their place. So a kernel cannot forge the agent's metadata here.
        """
        channel, parts = unpack(memoryview(body)[_SEQ:])
        header = header_of(parts[0])
        text = b"".join(
            (
                b'{"content":',
                parts[3],
                b',"header":',
                parts[0],
                b',"msg_id":',
                _encode(header.msg_id),
                b',"msg_type":',
                _encode(header.msg_type),
                b',"parent_header":',
                parts[1],
                b',"metadata":',
                parts[2],
                b',"channel":"',
                channel.encode(),
                b'","buffers":[]}' if len(parts) == 4 else b'"}',
            )
        )
        if not text.isascii():
            text = _utf8(text)
        if len(parts) == 4:
            return TEXT, text
        return BINARY, join_buffers([text, *parts[4:]])

    def from_client(self, message: str | bytes) -> Incoming:
        """A client's frame as v1 bytes. Raises OddMessage, BadKernelMessage."""
        if isinstance(message, str):
            document: str | bytes | memoryview = message
            buffers: list[memoryview] = []
        else:
            document, *buffers = split_buffers(message)
        try:
            legacy = _legacy.decode(document)
        except (UnicodeEncodeError, *UNREADABLE) as error:
            raise _refused(document, f"not a kernel message: {error}") from error
        header = bytes(legacy.header)
        channel = legacy.channel or "shell"
        sections = [_object(part) for part in (legacy.parent_header, legacy.metadata, legacy.content)]
        v1 = pack(channel, [header, *sections, *buffers])
        unpack(v1)
        return channel, header, v1

    def gap(self, missed: int, resume: int) -> bytes | None:
        """No frame of its own."""
        return None

    def error(self, error: Error) -> bytes | None:
        """No frame of its own."""
        return None


def _refused(document: str | bytes | memoryview, why: str) -> BadKernelMessage:
    """How to refuse a document that is no JSON: alone where its header can be read all the same.

    Python's own decoder takes NaN and halves of surrogates. It takes long, too: not for large documents.
    """
    if len(document) <= _MAX_ODD:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            text = document if isinstance(document, str) else bytes(document).decode("utf-8", "replace")
            found = json.loads(text)
            channel = found.get("channel") or "shell" if isinstance(found, dict) else None
            if channel in CHANNELS:
                header = msgspec.json.encode(found["header"])
                if (known := header_of(header)).msg_id and known.msg_type:
                    return OddMessage(why, channel, header)
    return BadKernelMessage(why)


def _object(part: msgspec.Raw) -> bytes:
    raw = bytes(part)
    return b"{}" if raw == b"null" else raw


def _utf8(text: bytes) -> bytes:
    """Text frames must be UTF-8; what a kernel wrote otherwise is replaced."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode()
    return text


def join_buffers(parts: list[bytes | memoryview]) -> bytes:
    """Jupyter's legacy binary layout: big-endian u32 count, u32 offsets, then JSON and buffers."""
    count = len(parts)
    sizes = (4 * (count + 1), *(len(part) for part in parts[:-1]))
    return b"".join((struct.pack(f"!{count + 1}I", count, *itertools.accumulate(sizes)), *parts))


def split_buffers(message: bytes) -> list[memoryview]:
    """The parts of a legacy binary frame, JSON first. Raises BadKernelMessage."""
    view = memoryview(message)
    if len(view) < 4:
        raise BadKernelMessage("shorter than its buffer count")
    (count,) = struct.unpack_from("!I", view)
    if not 1 <= count <= _MAX_BUFFERS or len(view) < 4 * (count + 1):
        raise BadKernelMessage(f"a buffer count of {count} does not fit")
    offsets = (*struct.unpack_from(f"!{count}I", view, 4), len(view))
    if offsets[0] != 4 * (count + 1) or any(a > b for a, b in itertools.pairwise(offsets)):
        raise BadKernelMessage("the buffer offsets do not describe the message")
    return [view[a:b] for a, b in itertools.pairwise(offsets)]


def select(offered: list[str]) -> str | None:
    """The best of the offered subprotocols; None is the legacy one."""
    return next((name for name in (DURABLE, V1) if name in offered), None)


def codec_for(subprotocol: str | None) -> Codec:
    """How frames look in a selected subprotocol."""
    if subprotocol == DURABLE:
        return DurableCodec()
    return V1Codec() if subprotocol == V1 else LegacyCodec()
