"""The agent's journal and its readers."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from llmsafespace_agent.server.errors import AgentError
from llmsafespace_agent.server.journal import Entry, Journal
from llmsafespace_agent.server.reader import Reader


class Sink:
    """Writes down what a reader sends."""

    def __init__(self) -> None:
        self.got: list[Entry | tuple[int, int]] = []

    def entry(self, entry: Entry) -> None:
        self.got.append(entry)

    def gap(self, missed: int, resume: int) -> None:
        self.got.append((missed, resume))

    @property
    def seqs(self) -> list[int]:
        return [one.seq for one in self.got if isinstance(one, Entry)]


class Stream:
    """As much of a FrameStream as a reader needs; `stop` and `go` play the peer."""

    def __init__(self) -> None:
        self.closed = False
        self._go = asyncio.Event()
        self._go.set()

    @property
    def writable(self) -> bool:
        return self._go.is_set()

    async def drain(self) -> None:
        await self._go.wait()

    def stop(self) -> None:
        self._go.clear()

    def go(self) -> None:
        self._go.set()


def everything(entry: Entry) -> bool:
    return True


async def settle(condition: object = None) -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_numbers_begin_at_one_and_entries_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 10_000, 10_000)
    assert (journal.head, journal.oldest) == (0, 1)
    assert journal.append(b"a", "s", "m") == 1
    assert journal.append(b"", "", "") == 2
    assert journal.read(1) == Entry(1, "s", "m", b"a")
    assert journal.read(2) == Entry(2, "", "", b"")
    with pytest.raises(IndexError):
        journal.read(3)


def test_what_memory_cannot_hold_is_on_disk_without_a_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 8_000, 10_000_000)
    for number in range(1, 501):
        assert journal.append(f"{number}é".encode() * 20, f"to{number}", f"ö{number}") == number
    assert os.listdir(tmp_path) == []
    assert journal.oldest == 1
    for number in (500, 1, 250, 499, 2):
        entry = journal.read(number)
        assert entry == Entry(number, f"to{number}", f"ö{number}", f"{number}é".encode() * 20)
    journal.close()


def test_beyond_the_quota_the_oldest_goes(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 20_000, 1_000_000)
    for _ in range(2_000):
        journal.append(b"x" * 1_000)
    assert 900 < journal.oldest < 1_500
    assert journal.read(journal.oldest - 1) is None
    for seq in range(journal.oldest, journal.head + 1):
        entry = journal.read(seq)
        assert entry is not None
        assert entry.seq == seq


def test_an_entry_larger_than_every_quota_is_a_hole_and_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1_000, 2_000)
    journal.append(b"a")
    journal.append(b"x" * 10_000)
    assert journal.oldest == 3
    journal.append(b"b")
    assert journal.read(3) == Entry(3, "", "", b"b")
    assert journal.read(1) is None


def test_a_full_disk_loses_the_oldest_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    journal = Journal(folder, 4_000, 1_000_000)
    for _ in range(20):
        journal.append(b"x" * 500)
    assert journal.oldest > 1
    assert journal.read(journal.head) is not None


async def test_reader_replays_then_goes_live(tmp_path: Path) -> None:
    journal, sink, stream = Journal(tmp_path, 10_000, 10_000), Sink(), Stream()
    for _ in range(3):
        journal.append(b"x")
    reader = Reader(journal, stream, sink, 1, everything)  # type: ignore[arg-type]
    reader.start()
    journal.append(b"live")
    assert sink.seqs == [2, 3, 4]
    reader.stop()
    journal.append(b"unseen")
    assert sink.seqs == [2, 3, 4]


async def test_readers_are_independent_and_a_stopped_one_catches_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 2_000, 1_000_000)
    slow, fast = Sink(), Sink()
    slow_stream, fast_stream = Stream(), Stream()
    Reader(journal, slow_stream, slow, 0, everything).start()  # type: ignore[arg-type]
    Reader(journal, fast_stream, fast, 0, everything).start()  # type: ignore[arg-type]
    slow_stream.stop()
    for _ in range(1_000):
        journal.append(b"x" * 100)
    await settle()
    assert fast.seqs == list(range(1, 1_001))
    assert slow.seqs == []
    slow_stream.go()
    await settle()
    assert slow.seqs == list(range(1, 1_001))


async def test_what_a_reader_missed_is_counted(tmp_path: Path) -> None:
    journal, sink, stream = Journal(tmp_path, 1_000, 100_000), Sink(), Stream()
    Reader(journal, stream, sink, 0, everything).start()  # type: ignore[arg-type]
    stream.stop()
    for _ in range(1_000):
        journal.append(b"x" * 1_000)
    stream.go()
    await settle()
    (gap,) = [one for one in sink.got if not isinstance(one, Entry)]
    assert gap[0] + len(sink.seqs) == 1_000
    assert sink.seqs[0] == gap[1]


async def test_a_reader_sees_only_what_is_wanted_and_ends_where_it_is_told(tmp_path: Path) -> None:
    journal, sink, stream = Journal(tmp_path, 10_000, 10_000), Sink(), Stream()
    done: list[int] = []
    for number in range(10):
        journal.append(b"x", about=str(number % 2))
    reader = Reader(journal, stream, sink, 0, lambda one: one.about == "1", lambda: done.append(1))  # type: ignore[arg-type]
    reader.start()
    reader.finish(8)
    assert sink.seqs == [2, 4, 6, 8, 10]
    assert done == [1]
    journal.append(b"x", about="1")
    assert sink.seqs[-1] == 10


async def test_replays_keep_their_numbers(tmp_path: Path) -> None:
    journal, sink, stream = Journal(tmp_path, 10_000, 10_000), Sink(), Stream()
    for number in range(6):
        journal.append(b"x", about=str(number % 2))
    reader = Reader(journal, stream, sink, 6, everything)  # type: ignore[arg-type]
    reader.start()
    reader.replay(1, lambda one: one.about == "1")
    journal.append(b"live")
    await settle()
    assert sink.seqs == [2, 4, 6, 7]


@pytest.mark.parametrize("after", [-1, 2, 10**18])
async def test_a_place_that_does_not_exist_is_refused(tmp_path: Path, after: int) -> None:
    journal = Journal(tmp_path, 10_000, 10_000)
    journal.append(b"x")
    with pytest.raises(AgentError) as caught:
        Reader(journal, Stream(), Sink(), after, everything)  # type: ignore[arg-type]
    assert caught.value.code == "conflict"
