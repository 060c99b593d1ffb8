"""The first line of a TCP connection to the egress proxy. It carries the egress token.

The agent receives the token with bind. The token names the sandbox and the destinations that it may reach.
After this line the connection is an ordinary connection to an HTTP proxy.
"""

from __future__ import annotations

MAX_PREAMBLE = 40 * 1024  # bytes of the line, newline included
_WORD = b"LLMSAFESPACE-EGRESS"


def preamble(token: str) -> bytes:
    """Return the first line of a connection, newline included. `token` must be ASCII."""
    return b"%b %b\n" % (_WORD, token.encode("ascii"))


def token_of(line: bytes) -> str | None:
    """Return the token in a preamble line, or None if the line is not a preamble."""
    word, _, token = line.removesuffix(b"\n").partition(b" ")
    if word != _WORD or not line.endswith(b"\n") or not token.isascii():
        return None
    return token.decode("ascii")
