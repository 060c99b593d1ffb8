"""What agent and worker say to each other over their socket.

The agent believes nothing that comes from where the code is: all that the worker says is frames of one size.
The agent's wishes are tuples in marshal form, each with its length before it; descriptors go with the first
byte.
"""

from __future__ import annotations

import marshal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # imports cost the worker memory
    from typing import Any

FRAME = struct.Struct("=BIqqqq")  # kind, number of the wish (0: unasked), and what the kind says

HELLO = 1  # a: the listener's errno; with it descriptors of / and, where a=0 and one was wished, the listener
DIED = 2  # a: process, b: its return code
ANSWER = 3  # a: the new process, b: errno of a failure
TOTAL = 4  # a: memory, b: microseconds of processor time, c: processes, d: bytes in the workspace
HELD = 5  # a: process, b: bytes of it and everything below it
COUNT = 6  # a: bytes of all kinds; the HELDs before it belong to it

ONE, GROUP, TREE = 0, 1, 2  # whom a signal is for

_LENGTH = struct.Struct("=I")
_MARSHAL = 2  # the version of the form: the same for every interpreter


def pack(wish: tuple[Any, ...]) -> bytes:
    """A wish of the agent as bytes."""
    data = marshal.dumps(wish, _MARSHAL)
    return _LENGTH.pack(len(data)) + data


def unpack(buffer: bytearray) -> tuple[Any, ...] | None:
    """Take the first wish from the bytes that came, None while it is not whole."""
    if len(buffer) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
    if len(buffer) < end:
        return None
    wish: tuple[Any, ...] = marshal.loads(bytes(buffer[_LENGTH.size : end]))  # noqa: S302  # from the agent
    del buffer[:end]
    return wish
