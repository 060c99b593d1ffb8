"""The ClientHello parser: real hellos of OpenSSL, every truncation of them, and garbage."""

from __future__ import annotations

import random
import ssl

import pytest

from llmsafespace_gateway.egress.client_hello import MAX_HELLO, NotTls, handshake_of, server_name


def hello(name: str | None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def body_of(data: bytes) -> bytes:
    body = handshake_of(data)
    assert body is not None
    return body


def test_name_of_a_real_hello() -> None:
    assert server_name(body_of(hello("pypi.org"))) == "pypi.org"
    assert server_name(body_of(hello(None))) is None


def test_every_truncation_wants_more() -> None:
    data = hello("example.com")
    for end in range(len(data)):
        assert handshake_of(data[:end]) is None
    assert server_name(body_of(data + b"what follows")) == "example.com"


def test_hello_in_many_records() -> None:
    data = hello("example.com")
    handshake = data[5:]
    pieces = [handshake[at : at + 7] for at in range(0, len(handshake), 7)]
    split = b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    assert server_name(body_of(split)) == "example.com"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH",
        b"\x17\x03\x03\x00\x10",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
    ],
)
def test_no_hello(data: bytes) -> None:
    with pytest.raises(NotTls):
        handshake_of(data)


def test_endless_records_end() -> None:
    record = b"\x16\x03\x01\x40\x00"
    data = record + b"\x01\x00\xff\xff" + bytes(16380) + (record + bytes(16384)) * 4
    with pytest.raises(NotTls):
        handshake_of(data + bytes(MAX_HELLO))


def test_changed_bytes_never_break_the_parser() -> None:
    good = body_of(hello("example.com"))
    chance = random.Random(7)
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            bad[chance.randrange(len(bad))] = chance.randrange(256)
        try:
            server_name(bytes(bad[: chance.randint(0, len(bad))]))
        except NotTls:
            continue


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body


def names(*hosts: bytes) -> bytes:
    entries = b"".join(b"\0" + len(host).to_bytes(2, "big") + host for host in hosts)
    return extension(0, len(entries).to_bytes(2, "big") + entries)


def made(extensions: bytes, after: bytes = b"") -> bytes:
    start = bytes(34) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    return start + len(extensions).to_bytes(2, "big") + extensions + after


def test_made_hello() -> None:
    assert server_name(made(names(b"a.example"))) == "a.example"
    assert server_name(made(b"")) is None
    assert server_name(bytes(34) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0") is None


@pytest.mark.parametrize(
    "body",
    [
        made(names(b"a.example", b"b.example")),
        made(names(b"a.example") + names(b"b.example")),
        made(names(b"")),
        made(names(b"a\0b")),
        made(names("ü.example".encode())),
        made(names(b"a.example"), b"more"),
        made(extension(0, b"")),
    ],
)
def test_ambiguous_names_are_refused(body: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(body)
