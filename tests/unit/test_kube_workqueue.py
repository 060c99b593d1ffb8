"""The work queue and the controller: every key that something happened to is looked at, by one at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from llmsafespace_kube.api.client import Unavailable
from llmsafespace_kube.api.controller import Controller
from llmsafespace_kube.api.objects import Key
from llmsafespace_kube.api.workqueue import Backoff, WorkQueue

LIMIT = 10.0  # seconds that anything here may take
_numbers = itertools.count()


def key(name: str) -> Key:
    return ("pods", name)


def drained(queue: WorkQueue) -> list[str]:
    found = []
    while (taken := queue.take()) is not None:
        found.append(taken[1])
        queue.done(taken)
    return found


def test_a_key_is_in_the_queue_once() -> None:
    queue = WorkQueue("test")
    for name in "abba":
        queue.add(key(name))
    assert len(queue) == 2
    assert drained(queue) == ["a", "b"]


def test_higher_priorities_go_first_and_may_come_later() -> None:
    queue = WorkQueue("test")
    for name, priority in (("low", 0), ("high", 9), ("raised", 0), ("raised", 5), ("high", 1)):
        queue.add(key(name), priority)
    assert drained(queue) == ["high", "raised", "low"]


def test_a_key_that_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    queue = WorkQueue("test")
    queue.add(key("a"))
    assert queue.take() == key("a")
    queue.add(key("a"))
    queue.add(key("a"), 5)
    assert queue.take() is None
    queue.done(key("a"))
    assert drained(queue) == ["a"]


acts = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, 2)),
    st.tuples(st.just("take"), st.just(""), st.just(0)),
    st.tuples(st.just("done"), st.sampled_from("abc"), st.just(0)),
)


@given(st.lists(acts, max_size=80))
def test_nothing_added_is_missed_and_nothing_is_taken_twice(story: list[tuple[str, str, int]]) -> None:
    queue = WorkQueue("test")
    owed: set[str] = set()  # added, and not taken since
    taken: set[str] = set()
    for act, name, priority in story:
        if act == "add":
            queue.add(key(name), priority)
            owed.add(name)
        elif act == "take":
            found = queue.take()
            assert (found is None) == (not owed - taken)
            if found is not None:
                assert found[1] in owed - taken
                owed.discard(found[1])
                taken.add(found[1])
        elif name in taken:
            queue.done(key(name))
            taken.discard(name)
    for name in taken:
        queue.done(key(name))
    assert set(drained(queue)) == owed


def test_pauses_double_up_to_a_limit_and_end_with_success() -> None:
    backoff = Backoff()
    pauses = [backoff.failed(key("a")) for _ in range(12)]
    assert 0 < pauses[0] <= 0.05
    assert pauses[0] < pauses[3] < pauses[6]
    assert max(pauses) <= 15
    assert backoff.failed(key("b")) <= 0.05
    backoff.succeeded(key("a"))
    assert backoff.failed(key("a")) <= 0.05


# -- the controller -------------------------------------------------------------------------------------


@asynccontextmanager
async def controller(
    reconcile: Callable[[Key], Awaitable[float | None]], workers: int = 8
) -> AsyncIterator[Controller]:
    made = Controller(f"test-{next(_numbers)}", reconcile, workers=workers)
    made.start()
    try:
        async with asyncio.timeout(LIMIT):
            yield made
    finally:
        await made.stop()


async def test_two_keys_run_side_by_side_but_one_key_never_beside_itself() -> None:
    running: Counter[Key] = Counter()
    runs: Counter[Key] = Counter()
    together = asyncio.Event()
    again = asyncio.Event()

    async def reconcile(key: Key) -> None:
        running[key] += 1
        runs[key] += 1
        assert running[key] == 1
        if len(+running) == 2:
            together.set()
        await together.wait()
        running[key] -= 1
        if runs[key] == 2:
            again.set()

    async with controller(reconcile) as made:
        for name in "ab":
            made.enqueue(key(name))
        await together.wait()
        made.enqueue(key("a"))
        await again.wait()
    assert runs[key("b")] == 1


async def test_no_more_run_than_there_are_workers() -> None:
    running = 0
    left = 20
    through = asyncio.Event()

    async def reconcile(key: Key) -> None:
        nonlocal running, left
        running += 1
        assert running <= 3
        await asyncio.sleep(0)
        running -= 1
        left -= 1
        if left == 0:
            through.set()

    async with controller(reconcile, workers=3) as made:
        for number in range(20):
            made.enqueue(key(str(number)))
        await through.wait()


async def test_what_fails_is_tried_again_and_what_asks_for_it_comes_again() -> None:
    story = iter([Unavailable("down"), ValueError("a bug"), 0.01, None])
    through = asyncio.Event()

    async def reconcile(key: Key) -> float | None:
        answer = next(story)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            through.set()
        return answer

    async with controller(reconcile) as made:
        made.enqueue(key("a"))
        await through.wait()


async def test_a_later_look_never_holds_up_an_earlier_one() -> None:
    through = asyncio.Event()

    async def reconcile(key: Key) -> None:
        through.set()

    async with controller(reconcile) as made:
        made.enqueue(key("a"), after=3600)
        made.enqueue(key("a"), after=0.01)
        made.enqueue(key("a"), after=1800)
        await through.wait()


async def test_nothing_runs_before_the_start_nor_after_the_stop() -> None:
    runs: list[Key] = []
    ended = asyncio.Event()

    async def reconcile(key: Key) -> None:
        runs.append(key)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    made = Controller(f"test-{next(_numbers)}", reconcile)
    made.enqueue(key("before"))
    made.start()
    await asyncio.sleep(0)
    assert runs == []
    made.enqueue(key("a"))
    await asyncio.sleep(0)
    await made.stop()
    assert ended.is_set()
    made.enqueue(key("b"))
    await asyncio.sleep(0)
    assert runs == [key("a")]


async def test_a_key_that_a_stop_took_from_its_worker_is_reconciled_after_the_next_start() -> None:
    ran = asyncio.Event()

    async def reconcile(key: Key) -> None:
        ran.set()

    made = Controller(f"test-{next(_numbers)}", reconcile)
    made.start()
    made.enqueue(key("a"))
    await made.stop()
    assert not ran.is_set()
    made.start()
    made.enqueue(key("a"))
    async with asyncio.timeout(LIMIT):
        await ran.wait()
    await made.stop()


async def test_what_happens_while_another_process_leads_is_not_kept() -> None:
    async def reconcile(key: Key) -> None:
        raise AssertionError

    made = Controller(f"test-{next(_numbers)}", reconcile)
    for number in range(1000):
        made.enqueue(key(str(number)), after=number % 2)
    assert len(made._queue) + len(made._timers) == 0
