"""The three subprotocols against Jupyter's own implementation of them."""

from __future__ import annotations

import json
import struct

import pytest
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from llmsafespace_gateway.jupyter.codecs import (
    DURABLE,
    V1,
    DurableCodec,
    LegacyCodec,
    V1Codec,
    codec_for,
    select,
)
from llmsafespace_gateway.sandboxes.relay import WrongFrame
from llmsafespace_gateway.sandboxes.websocket_frames import BINARY, TEXT, frame_head
from llmsafespace_protocol.kernel_messages import BadKernelMessage, pack, unpack

HEADER = {"msg_id": "a", "msg_type": "display_data", "session": "s", "date": "2026-01-02T03:04:05.000006Z"}
CONTENT = {"data": {"text/plain": 'ünï "quoted" \n'}, "metadata": {}}


def journaled(seq: int = 7, buffers: tuple[bytes, ...] = ()) -> bytes:
    parts = [json.dumps(part, ensure_ascii=False).encode() for part in (HEADER, {}, {"k": 1}, CONTENT)]
    return seq.to_bytes(8, "big") + pack("iopub", [*parts, *buffers])


def test_legacy_text_is_what_jupyter_clients_read() -> None:
    opcode, payload = LegacyCodec().to_client(journaled())
    assert opcode == TEXT
    assert json.loads(bytes(payload)) == {
        "header": HEADER,
        "msg_id": "a",
        "msg_type": "display_data",
        "parent_header": {},
        "metadata": {"k": 1},
        "content": CONTENT,
        "channel": "iopub",
        "buffers": [],
    }


def test_legacy_is_binary_only_with_buffers() -> None:
    opcode, payload = LegacyCodec().to_client(journaled(buffers=(b"\0\1", b"", b"xyz")))
    assert opcode == BINARY
    message = deserialize_binary_message(bytes(payload))
    assert message["content"] == CONTENT
    assert message["channel"] == "iopub"
    assert message["buffers"] == [b"\0\1", b"", b"xyz"]


def test_legacy_replaces_what_is_no_utf8() -> None:
    body = (1).to_bytes(8, "big") + pack("iopub", [b'{"msg_id":"a"}', b"{}", b"{}", b'{"t":"\xff"}'])
    opcode, payload = LegacyCodec().to_client(body)
    assert opcode == TEXT
    assert json.loads(bytes(payload).decode())["content"] == {"t": "\ufffd"}


def test_legacy_from_client_text_and_binary() -> None:
    message = {"header": HEADER, "parent_header": {}, "metadata": {}, "content": {"code": "é"}}
    text = json.dumps(message | {"channel": "shell", "buffers": []})
    channel, header, v1 = LegacyCodec().from_client(text)
    assert (channel, json.loads(bytes(header))) == ("shell", HEADER)
    assert json.loads(bytes(unpack(v1)[1][3])) == {"code": "é"}

    binary = serialize_binary_message(message | {"channel": "control", "buffers": [b"abc", b""]})
    channel, header, v1 = LegacyCodec().from_client(binary)
    name, parts = unpack(v1)
    assert (channel, name, [bytes(part) for part in parts[4:]]) == ("control", "control", [b"abc", b""])


def test_legacy_without_a_channel_means_shell() -> None:
    channel, _, v1 = LegacyCodec().from_client('{"header": {"msg_id": "a"}, "parent_header": null}')
    assert channel == "shell"
    assert bytes(unpack(v1)[1][1]) == b"{}"


def test_v1_passes_through() -> None:
    opcode, payload = V1Codec().to_client(journaled(buffers=(b"abc",)))
    channel, parts = deserialize_msg_from_ws_v1(bytes(payload))
    assert (opcode, channel, bytes(parts[4])) == (BINARY, "iopub", b"abc")
    sent = serialize_msg_to_ws_v1([json.dumps(HEADER).encode(), b"{}", b"{}", b"{}"], "shell")
    channel, header, v1 = V1Codec().from_client(sent)
    assert (channel, json.loads(bytes(header)), v1) == ("shell", HEADER, sent)


def test_durable_keeps_the_sequence_number() -> None:
    body = journaled(258)
    assert DurableCodec().to_client(body) == (BINARY, body)
    assert json.loads(DurableCodec().gap(3, 9) or b"") == {"gap": {"missed": 3, "resume": 9}}
    assert V1Codec().gap(3, 9) is None


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"header": 1, "channel": "nowhere"}',
        '{"header": {}, "channel": 5}',
        '{"header": {}, "content": ' + "[" * 5000 + "]" * 5000 + "}",
        b'\0\0\0\1\0\0\0\x08{"header": {"\xff": 1}, "channel": "\xff"}',
        b"",
        b"\0\0",
        struct.pack("!I", 0),
        struct.pack("!I", 2**31),
        struct.pack("!II", 1, 8) + b"nonsense",
        struct.pack("!III", 2, 12, 4) + b"{}",
        struct.pack("!II", 1, 2**32 - 1) + b"{}",
    ],
)
def test_legacy_garbage(garbage: str | bytes) -> None:
    with pytest.raises(BadKernelMessage):
        LegacyCodec().from_client(garbage)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 7, b"\xff" * 64, b"\0" * 64])
def test_v1_garbage(garbage: bytes) -> None:
    with pytest.raises(BadKernelMessage):
        V1Codec().from_client(garbage)


def test_v1_takes_no_text() -> None:
    with pytest.raises(WrongFrame):
        V1Codec().from_client("{}")


def test_the_best_subprotocol_is_selected() -> None:
    assert select([V1, DURABLE]) == DURABLE
    assert select(["other", V1]) == V1
    assert select(["other"]) is None
    assert [type(codec_for(name)) for name in (None, V1, DURABLE)] == [LegacyCodec, V1Codec, DurableCodec]


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (65535, b"\x82\x7e\xff\xff"),
        (65536, b"\x82\x7f" + (65536).to_bytes(8, "big")),
    ],
)
def test_frame_heads(size: int, head: bytes) -> None:
    assert frame_head(BINARY, size) == head
