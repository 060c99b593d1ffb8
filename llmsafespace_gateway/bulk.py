"""Large JSON off the event loop: what takes longer than a turn of the loop may is done by a thread.

A thread alone is not enough: one call into the decoder or encoder holds the interpreter's lock to its end, so
long lists are taken to pieces first.
"""

from __future__ import annotations

import asyncio
import secrets
import typing
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

LARGE = 64 * 1024  # bytes of JSON, about half a millisecond
_MANY = 200  # items of a list
_BATCH = 100
_T = TypeVar("_T")


async def run(size: int, work: Callable[..., _T], *given: Any) -> _T:
    """The result of `work(*given)`: done here when `size` bytes are few, else by a thread."""
    return work(*given) if size <= LARGE else await asyncio.to_thread(work, *given)


async def decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    """`body` as a value of type `kind`. Raises msgspec's errors."""
    return await run(len(memoryview(body)), _decode, body, kind)


def _decode(body: bytes | msgspec.Raw, kind: Any) -> Any:
    if typing.get_origin(kind) is not list or len(memoryview(body)) <= LARGE:
        return msgspec.json.decode(body, type=kind)
    decoder = msgspec.json.Decoder(typing.get_args(kind)[0])
    return [decoder.decode(item) for item in msgspec.json.decode(body, type=list[msgspec.Raw])]


async def encode(answer: Any) -> bytes:
    """`answer` as JSON."""
    return await run(_weight(answer), _encode, answer)


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


def _encode(answer: Any) -> bytes:
    marks: dict[str, list[Any]] = {}
    shown: dict[str, Any] = {}
    for name in answer.__struct_fields__ if isinstance(answer, msgspec.Struct) else ():
        value = getattr(answer, name)
        if isinstance(value, list) and len(value) > _MANY:
            mark = secrets.token_hex(16)
            marks[mark] = value
            shown[name] = [msgspec.Raw(b'"' + mark.encode() + b'"')]
    if not marks:
        return msgspec.json.encode(answer)
    rest = msgspec.json.encode(msgspec.structs.replace(answer, **shown))
    pieces: list[bytes] = []
    for mark, items in marks.items():
        before, _, rest = rest.partition(b'"' + mark.encode() + b'"')
        pieces.append(before)
        for start in range(0, len(items), _BATCH):
            part = msgspec.json.encode(items[start : start + _BATCH])
            pieces.append((b"," if start else b"") + part[1:-1])
    pieces.append(rest)
    return b"".join(pieces)
