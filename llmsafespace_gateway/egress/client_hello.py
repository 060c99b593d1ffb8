"""The server name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3): a pure, bounded parser."""

from __future__ import annotations

RECORD_HEADER = 5
MAX_HELLO = 64 * 1024  # bytes; post-quantum key shares make about 2 KiB
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_MAX_RECORD = 16384 + 256


class NotTls(ValueError):
    """The bytes are no ClientHello; the message says what is wrong."""


class _Reader:
    """Reads length-prefixed vectors and never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise NotTls("a length goes beyond the end of the ClientHello")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def handshake_of(data: bytes) -> bytes | None:
    """The body of the ClientHello that `data` begins with, joined from its records; None when more is needed.

    Raises NotTls as soon as it can be none.
    """
    joined = bytearray()
    at = 0
    while True:
        header = data[at : at + RECORD_HEADER]
        if header and header[0] != _HANDSHAKE:
            raise NotTls("it does not begin with a TLS handshake")
        if len(header) > 1 and header[1] != 3:
            raise NotTls("unknown TLS version")
        if len(header) < RECORD_HEADER:
            break
        length = int.from_bytes(header[3:5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise NotTls("a TLS record has an impossible length")
        joined += data[at + RECORD_HEADER : at + RECORD_HEADER + length]
        if joined and joined[0] != _CLIENT_HELLO:
            raise NotTls("the first handshake message is no ClientHello")
        if len(joined) >= 4:
            wanted = 4 + int.from_bytes(joined[1:4], "big")
            if wanted > MAX_HELLO:
                raise NotTls("the ClientHello is too long")
            if len(joined) >= wanted:
                return bytes(joined[4:wanted])
        if at + RECORD_HEADER + length > len(data):
            break
        at += RECORD_HEADER + length
    if len(data) > MAX_HELLO:
        raise NotTls("the ClientHello is too long")
    return None


def server_name(hello: bytes) -> str | None:
    """The host name in a ClientHello's body, None when it has none. Raises NotTls for anything malformed."""
    reader = _Reader(hello)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    if reader.at_end():
        return None
    extensions = reader.vector(2)
    if not reader.at_end():
        raise NotTls("bytes after the extensions")
    name: str | None = None
    while not extensions.at_end():
        kind = extensions.number(2)
        body = extensions.vector(2)
        if kind == _SERVER_NAME:
            if name is not None:
                raise NotTls("two server names")
            name = _host_name(body)
    return name


def _host_name(body: _Reader) -> str:
    names = body.vector(2)
    if not body.at_end() or names.number(1) != 0:
        raise NotTls("malformed server name")
    raw = names.vector(2).rest()
    if not names.at_end():
        raise NotTls("two server names")
    if not raw or not raw.isascii() or not all(32 < byte < 127 for byte in raw):
        raise NotTls("malformed server name")
    return raw.decode("ascii")
