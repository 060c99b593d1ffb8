"""Large answers leave as the same JSON as small ones, in pieces; no long list is left to free on the loop."""

from __future__ import annotations

import weakref
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway import bulk


class Item(msgspec.Struct, rename="camel", weakref=True):
    """One of many."""

    some_text: str
    data: dict[str, Any] = {}


class Answer(msgspec.Struct, rename="camel"):
    """A body with all that grows."""

    first_text: str
    items: list[Item]
    names: list[str] = []
    last_text: str = ""


async def encoded(answer: Answer) -> list[bytes]:
    return await bulk.encode(answer)


@pytest.mark.parametrize("count", [0, 1, 100, 200, 201, 1000, 20_000])
async def test_a_long_list(count: int) -> None:
    """The JSON is what msgspec makes of the whole, and the list is empty afterwards where it was long."""
    answer = Answer("é", [Item(f'"{n}', {"x/y": msgspec.Raw(b"[1]")}) for n in range(count)], ["a", "b"], "z")
    whole = msgspec.json.encode(answer)
    assert b"".join(await encoded(answer)) == whole
    assert not answer.items or count <= 200


@pytest.mark.parametrize("text", ["x", "é\n", "\U0001f600", '"', "\0"], ids=ascii)
async def test_a_long_text(text: str) -> None:
    """A text is cut between characters only."""
    answer = Answer(text * 300_000, [Item("x")] * 3, [text] * 1000, text * 262_145)
    whole = msgspec.json.encode(answer)
    pieces = await encoded(answer)
    assert b"".join(pieces) == whole
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 256 * 1024


async def test_a_list_is_decoded_item_by_item() -> None:
    """And a wrong item is an error, wherever it stands."""
    items = [Item(str(n)) for n in range(10_000)]
    body = msgspec.json.encode(items)
    assert await bulk.decode(body, list[Item]) == items
    with pytest.raises(msgspec.ValidationError):
        await bulk.decode(body[:-1] + b",7]", list[Item])


def test_what_is_drained_is_let_go_of() -> None:
    """In order, each before the next one is taken."""
    items = [Item(str(n)) for n in range(3)]
    last = weakref.ref(items[0])
    for count, item in enumerate(bulk.drained(items)):
        assert item.some_text == str(count)
        assert len(items) == 2 - count
        if count:
            assert last() is None
        last = weakref.ref(item)
        del item
    assert items == []
