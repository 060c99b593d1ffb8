"""What only the agent may say is taken out of a kernel's messages, however it is spelt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsafespace_agent.server import cleaning
from llmsafespace_agent.server.journal import Entry, Journal
from llmsafespace_agent.server.reader import Reader

END = {"end": "timeout"}
HEADER = b'{"msg_id": "m"}'
PARENT = b'{"msg_id": "p"}'


def cleaned(metadata: bytes) -> bytes:
    parts = [HEADER, PARENT, metadata, b"{}"]
    return (parts if cleaning.is_clean(parts) else cleaning.cleaned(parts))[2]


@pytest.mark.parametrize(
    "metadata",
    [
        json.dumps({"llmsafespace": END}).encode(),
        json.dumps({"a": 1, "llmsafespace": END, "b": [None]}).encode(),
        b'{"llmsafe\\u0073pace": {"end": "oom"}}',
        b'{"\\u006C\\u006cmsafespace": 1}',
        b'{"llmsafespace": 1, "llmsafespace": 2}',
        json.dumps({"llmsafespace": END}).encode("utf-16"),
        json.dumps({"llmsafespace": END}).encode("utf-32-le"),
        b"\xef\xbb\xbf" + json.dumps({"llmsafespace": END}).encode(),
        b'{"x": NaN, "llmsafespace": 1}',
        b'{"x": "\xff", "llmsafespace": 1}',
        b'{}, "metadata": {"llmsafespace": 1}',
        b'{"llmsafe\xffspace": 1}',
        b'{"llmsafespace": 1',
        b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "llmsafespace": 1}',
        b"",
        b'"llmsafespace"',
    ],
    ids=range(17),
)
def test_no_decoder_finds_the_agents_words(metadata: bytes) -> None:
    left = json.loads(cleaned(metadata).decode())
    assert isinstance(left, dict)
    assert "llmsafespace" not in left


@pytest.mark.parametrize(
    "metadata", [b"{}", b'{"started": "2026", "engine": "x"}', b'{"a": {"llmsafespace": 1}}', b'{"n": 1e400}']
)
def test_everything_else_stays_as_it_is(metadata: bytes) -> None:
    assert cleaned(metadata) == metadata


def test_what_stays_beside_them() -> None:
    left = json.loads(cleaned(b'{"a": 1, "llmsafespace": {}, "b": {"c": [1.5, null, "\\u00e9"]}}'))
    assert left == {"a": 1, "b": {"c": [1.5, None, "\u00e9"]}}


@pytest.mark.parametrize("parent", [b"", b"{", b"1,", b"[]", b"{}"])
def test_a_parent_that_nobody_has_read_is_empty(parent: bytes) -> None:
    parts = [HEADER, parent, b"{}", b"{}"]
    assert not cleaning.is_clean(parts)
    assert cleaning.cleaned(parts)[1] == b"{}"


def test_what_a_kernel_writes_in_the_place_of_a_large_message_cannot_raise() -> None:
    assert cleaning.too_large(b'{"msg_type": "display_data", "size": 5}').size == 5
    for content in (b"", b"[]", b'{"size": "x"}', b"\xff", b'{"msg_type": 1, "size": 1e99}'):
        assert cleaning.too_large(content).size == 0


class Sink:
    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []

    def entry(self, entry: Entry) -> None:
        self.got.append(("entry", entry.seq))

    def gap(self, missed: int, resume: int) -> None:
        self.got.append((f"gap of {missed}", resume))


class Stream:
    writable = True
    closed = False

    async def drain(self) -> None: ...


async def test_a_hole_is_a_gap_of_one_live_from_memory_and_from_disk(tmp_path: Path) -> None:
    journal, live = Journal(tmp_path, 2_000, 1_000_000), Sink()
    Reader(journal, Stream(), live, 0, lambda entry: True).start()  # type: ignore[arg-type]
    for body in (b"one", b"", b"three", *[b"x" * 500] * 20):
        journal.append(body, "", "about")
    wanted = [("entry", 1), ("gap of 1", 3), *[("entry", seq) for seq in range(3, 24)]]
    assert live.got == wanted
    late = Sink()
    Reader(journal, Stream(), late, 0, lambda entry: True).start()  # type: ignore[arg-type]
    assert late.got == wanted
    other = Sink()
    Reader(journal, Stream(), other, 0, lambda entry: entry.about == "another").start()  # type: ignore[arg-type]
    assert other.got == []
