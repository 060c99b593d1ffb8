"""The SDK's codec against the agent's, and against broken bytes."""

from __future__ import annotations

import struct

import pytest

from llmsafespace import messages
from llmsafespace.decoding import BadMessage, decode_object
from llmsafespace_protocol import kernel_messages


def test_both_codecs_write_the_same_bytes() -> None:
    parts = [b'{"msg_id":"a"}', b"{}", b"{}", b'{"x":1}', b"\x00buffer", b""]
    assert messages.pack("iopub", parts) == kernel_messages.pack("iopub", parts)


def test_a_message_survives_the_way_there_and_back() -> None:
    header = messages.header("execute_request", "session", "id-1")
    data = messages.build("shell", header, {"code": "1"}, metadata={"llmsafespace": {"timeout": 2.0}})
    message = messages.unpack_durable(struct.pack(">Q", 2**40) + data)
    assert message.seq == 2**40
    assert message.channel == "shell"
    assert message.header() == messages.Header("id-1", "execute_request", "session")
    assert message.metadata() == {"llmsafespace": {"timeout": 2.0}}
    assert message.content() == {"code": "1"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01" * 7,
        struct.pack("<Q", 2**63) + b"\0" * 64,
        struct.pack("<7Q", 6, 56, 56, 56, 56, 56, 99),
        struct.pack("<7Q", 6, 56, 60, 58, 56, 56, 56),
        struct.pack("<2Q", 1, 16),
    ],
)
def test_broken_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        messages.unpack(data)


def test_content_that_is_not_strict_json_is_understood() -> None:
    assert decode_object(b'{"a": NaN}')["a"] != 0
    assert decode_object(b'{"a": "\xff"}') == {"a": "�"}
    with pytest.raises(BadMessage):
        decode_object(b"[1]")
