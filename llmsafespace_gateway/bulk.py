"""Large JSON off the event loop: what takes longer than a turn of the loop may is done by a thread.

A thread alone is not enough. One call into the decoder or encoder holds the interpreter's lock to its end, so
long lists and texts are taken to pieces first. And to free a long list takes as long as to make it: whoever
converts one in a thread empties it there (`drained`), or the loop pays when its last owner lets go.
"""

from __future__ import annotations

import asyncio
import secrets
import typing
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import msgspec

LARGE = 64 * 1024  # bytes of JSON, about half a millisecond
_PIECE = 256 * 1024  # bytes of an answer that are sent in one turn of the loop
_MANY = 200  # items of a list
_BATCH = 100
_TEXT = 256 * 1024  # characters of a text that are encoded in one call
_T = TypeVar("_T")


async def run(size: int, work: Callable[..., _T], *given: Any) -> _T:
    """The result of `work(*given)`: done here when `size` bytes are few, else by a thread."""
    return work(*given) if size <= LARGE else await asyncio.to_thread(work, *given)


def drained(items: list[_T]) -> Iterator[_T]:
    """The items in order; the list lets go of each as it is taken, and is empty in the end."""
    items.reverse()
    while items:
        yield items.pop()


async def decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    """`body` as a value of type `kind`. Raises msgspec's errors."""
    return await run(len(memoryview(body)), _decode, body, kind)


def _decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    if typing.get_origin(kind) is not list or len(memoryview(body)) <= LARGE:
        return msgspec.json.decode(body, type=kind)
    decoder = msgspec.json.Decoder(typing.get_args(kind)[0])
    return [decoder.decode(item) for item in drained(msgspec.json.decode(body, type=list[msgspec.Raw]))]


async def encode(answer: Any) -> list[bytes]:
    """`answer` as JSON, in pieces that a turn of the loop may send. Its long lists are emptied meanwhile."""
    return await run(_weight(answer), _encode, answer)


async def in_turns(pieces: list[bytes]) -> AsyncGenerator[bytes]:
    """The pieces; the loop serves others between them, even while the reader takes all at once."""
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


def _weight(answer: Any) -> int:
    """About how many bytes a Struct's own fields are: cheap, and too little for deep ones."""
    if not isinstance(answer, msgspec.Struct):
        return 0
    total = 0
    for name in answer.__struct_fields__:
        value = getattr(answer, name)
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, list):
            total += len(value) * (LARGE // _MANY)
            total += sum(map(_item_weight, value[:_MANY]))
    return total


def _item_weight(item: Any) -> int:
    data = getattr(item, "data", None)
    if not isinstance(data, dict):
        return 0
    return sum(len(memoryview(each)) for each in data.values() if isinstance(each, bytes | msgspec.Raw))


def _encode(answer: Any) -> list[bytes]:
    marks: dict[str, list[Any] | str] = {}
    shown: dict[str, Any] = {}
    for name in answer.__struct_fields__ if isinstance(answer, msgspec.Struct) else ():
        value = getattr(answer, name)
        if isinstance(value, list | str) and len(value) > (_MANY if isinstance(value, list) else _TEXT):
            mark = secrets.token_hex(16)
            marks[mark] = value
            shown[name] = msgspec.Raw(b'"' + mark.encode() + b'"')
    if not marks:
        return [msgspec.json.encode(answer)]
    rest = msgspec.json.encode(msgspec.structs.replace(answer, **shown))
    pieces = _Pieces()
    for mark, value in marks.items():
        before, _, rest = rest.partition(b'"' + mark.encode() + b'"')
        pieces.add(before)
        for part in _text(value) if isinstance(value, str) else _list(value):
            pieces.add(part)
    pieces.add(rest)
    return pieces.all()


def _list(items: list[Any]) -> Iterator[bytes]:
    begin = b"["
    batch: list[Any] = []
    for item in drained(items):
        batch.append(item)
        if len(batch) == _BATCH or not items:
            yield begin
            yield msgspec.json.encode(batch)[1:-1]
            batch.clear()
            begin = b","
    yield b"]"


def _text(text: str) -> Iterator[bytes]:
    yield b'"'
    for start in range(0, len(text), _TEXT):
        yield msgspec.json.encode(text[start : start + _TEXT])[1:-1]
    yield b'"'


class _Pieces:
    """Collects small parts into pieces of a size that is worth a turn."""

    def __init__(self) -> None:
        self._whole: list[bytes] = []
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)
        if self._size >= _PIECE:
            self._close()

    def all(self) -> list[bytes]:
        self._close()
        return self._whole

    def _close(self) -> None:
        joined = b"".join(self._parts)
        self._parts, self._size = [], 0
        self._whole.extend(joined[at : at + _PIECE] for at in range(0, len(joined), _PIECE))
