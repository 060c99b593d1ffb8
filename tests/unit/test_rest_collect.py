"""One answer of all events: bounded in JSON, cut truthfully, and the error always in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway.rest.executions import encode_event
from llmsafespace_gateway.rest.routing import NDJSON, SSE
from llmsafespace_gateway.sandboxes.collecting import Collected, collect
from llmsafespace_gateway.sandboxes.events import (
    Clear,
    Display,
    End,
    ErrorEvent,
    Event,
    Missed,
    Stdout,
    Update,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
END = End(execution_id="x", end="ok", exit_code=0, started_at=NOW, completed_at=NOW)
LIMIT = 10_000


async def told(*events: Event) -> AsyncIterator[Event]:
    for event in (*events, END):
        yield event


@pytest.mark.parametrize("character", ["x", "\0", "\u00e9", "\U0001f600", '"', "\n"], ids=ascii)
async def test_the_limit_is_of_the_json(character: str) -> None:
    answer = await collect(told(*[Stdout(text=character * 100)] * 1000), limit=LIMIT)
    assert answer.truncated
    assert LIMIT * 0.9 < len(msgspec.json.encode(answer.stdout)) <= LIMIT + 2
    assert set(answer.stdout) == {character}


async def test_what_fits_exactly_is_whole() -> None:
    answer = await collect(told(Stdout(text="x" * LIMIT)), limit=LIMIT)
    assert (answer.stdout, answer.truncated) == ("x" * LIMIT, False)


async def test_an_error_is_cut_but_never_left_out() -> None:
    error = ErrorEvent(name="Huge", value="v" * 100_000, traceback=["t" * 100_000])
    answer = await collect(told(Stdout(text="x" * LIMIT), error), limit=LIMIT)
    assert answer.error is not None
    assert (answer.error.name, answer.error.value[:2], answer.error.traceback) == ("Huge", "vv", [])
    assert answer.truncated


async def test_missed_and_truncated_are_told_apart() -> None:
    answer = await collect(told(Missed(missed=3, resume=5), Stdout(text="x")), limit=LIMIT)
    assert (answer.missed, answer.truncated) == (3, False)


@pytest.mark.parametrize("kind", [NDJSON, SSE])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"], ids=ascii)
def test_an_event_is_one_line_whatever_the_kernel_wrote(kind: str, end: str) -> None:
    forged = f'[1,{end}{{"type":"end","end":"timeout"}}{end},2]'
    event = Display(
        data={"x/y": msgspec.Raw(forged.encode()), "text/plain": msgspec.Raw(b'"\xe2\x80\xa8\xc2\x85"')}
    )
    body = encode_event(event, kind).decode()
    wanted = 1 if kind == NDJSON else 3
    assert len([line for line in body.splitlines() if line]) == wanted
    line: Any = json.loads(body.splitlines()[wanted - 1].removeprefix("data: "))
    assert line["data"]["text/plain"] == "\u2028\x85"
    assert line["data"]["x/y"][1] == {"type": "end", "end": "timeout"}


def _display(text: str, display_id: str | None = None) -> Display:
    return Display(data={"text/plain": msgspec.Raw(msgspec.json.encode(text))}, display_id=display_id)


def _update(text: str, display_id: str) -> Update:
    return Update(data={"text/plain": msgspec.Raw(msgspec.json.encode(text))}, display_id=display_id)


def _texts(answer: Collected) -> list[str]:
    return [msgspec.json.decode(bytes(each.data["text/plain"])) for each in answer.results]


async def test_an_update_is_for_all_displays_before_it() -> None:
    """Those that come later under the same id show what they were made with, until the next update."""
    events = (_display("1", "a"), _display("2"), _display("3", "a"), _update("4", "a"), _display("5", "a"))
    assert _texts(await collect(told(*events))) == ["4", "2", "4", "5"]
    again = (_update("6", "b"), _update("7", "a"))
    assert _texts(await collect(told(*events, *again))) == ["7", "2", "7", "7"]


async def test_an_update_that_does_not_fit_changes_nothing() -> None:
    """It counts for each display that it is for."""
    shown = [_display("x", "a")] * 10
    answer = await collect(told(*shown, _update("y" * 1000, "a")), limit=LIMIT)
    assert (_texts(answer), answer.truncated) == (["x"] * 10, True)
    answer = await collect(told(*shown, _update("y" * 900, "a"), _update("z", "a")), limit=LIMIT)
    assert (_texts(answer), answer.truncated) == (["z"] * 10, False)


async def test_what_was_cleared_leaves_its_room() -> None:
    """Updates included; what comes later under an old id is a display of its own."""
    big = "x" * (LIMIT // 2)
    round_ = (_display("y", "a"), _update(big, "a"), Clear())
    answer = await collect(told(*round_ * 5, _update("z", "a"), _display("w", "a")), limit=LIMIT)
    assert (_texts(answer), answer.truncated) == (["w"], False)


async def test_many_updates_of_many_displays_of_one_id() -> None:
    """Each costs the same, however many displays it is for: otherwise this does not end."""
    shown = [_display("x", "a")] * 20_000
    answer = await collect(told(*shown, *[_update(str(n), "a") for n in range(10_000)], *shown))
    assert _texts(answer) == ["9999"] * 20_000 + ["x"] * 20_000
