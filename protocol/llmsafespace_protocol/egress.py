"""How a connection to the egress proxy begins where that is reached over TCP: one line with a token.

The token came with bind and says which sandbox this is and what it may reach. After the line, the connection
is an ordinary one to an HTTP proxy.
"""

from __future__ import annotations

MAX_PREAMBLE = 40 * 1024  # bytes of the line, its end included
_WORD = b"LLMSAFESPACE-EGRESS"


def preamble(token: str) -> bytes:
    """The first line of a connection."""
    return b"%b %b\n" % (_WORD, token.encode("ascii"))


def token_of(line: bytes) -> str | None:
    """The token in such a line, None when it is none."""
    word, _, token = line.removesuffix(b"\n").partition(b" ")
    if word != _WORD or not line.endswith(b"\n") or not token.isascii():
        return None
    return token.decode("ascii")
