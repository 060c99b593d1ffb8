"""Expectations: an owner is left alone until the informer shows what was written for it, or ought to."""

from __future__ import annotations

import pytest

from llmsafespace_kube.api.expectations import LIMIT, Expectations

POOL = ("warm-pools", "python")
OTHER = ("warm-pools", "bash")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def expectations(clock: Clock) -> Expectations:
    return Expectations(clock=clock)


def test_an_owner_of_which_nothing_is_expected_is_satisfied(expectations: Expectations) -> None:
    assert expectations.satisfied(POOL)


def test_all_that_is_to_be_created_must_be_seen(expectations: Expectations) -> None:
    expectations.expect_created(POOL, ["a", "b"])
    expectations.observed_created(POOL, "a")
    assert not expectations.satisfied(POOL)
    assert expectations.satisfied(OTHER)
    expectations.observed_created(POOL, "b")
    assert expectations.satisfied(POOL)


def test_all_that_is_to_be_deleted_must_be_gone(expectations: Expectations) -> None:
    expectations.expect_deleted(POOL, ["a"])
    expectations.observed_created(POOL, "a")
    assert not expectations.satisfied(POOL)
    expectations.observed_deleted(POOL, "a")
    assert expectations.satisfied(POOL)


def test_what_was_deleted_before_it_was_seen_is_not_waited_for(expectations: Expectations) -> None:
    expectations.expect_created(POOL, ["a"])
    expectations.observed_deleted(POOL, "a")
    assert expectations.satisfied(POOL)


def test_others_objects_satisfy_nothing(expectations: Expectations) -> None:
    expectations.expect_created(POOL, ["a"])
    expectations.observed_created(POOL, "b")
    expectations.observed_created(OTHER, "a")
    assert not expectations.satisfied(POOL)


def test_nobody_waits_for_ever(expectations: Expectations, clock: Clock) -> None:
    expectations.expect_created(POOL, ["a"])
    clock.now += LIMIT - 1
    expectations.expect_deleted(POOL, ["b"])
    assert not expectations.satisfied(POOL)
    clock.now += LIMIT - 1
    assert not expectations.satisfied(POOL)  # the second still has its time
    clock.now += 2
    assert expectations.satisfied(POOL)


def test_an_owner_that_is_gone_is_forgotten(expectations: Expectations) -> None:
    expectations.expect_created(POOL, ["a"])
    expectations.expect_deleted(POOL, ["b"])
    expectations.forget(POOL)
    assert expectations.satisfied(POOL)
