"""Rate limits: buckets, headers, and addresses that present bad keys."""

from __future__ import annotations

import pytest

from llmsafespace_gateway.access.rates import Buckets, RateLimited, RateLimits, limit_headers


def test_a_bucket_empties_and_fills() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    assert [buckets.take("a", 10.0)[0] for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 10.0) == (True, 2.0)
    assert buckets.take("a", 10.4)[0] is False
    assert buckets.take("a", 10.5)[0] is True
    assert buckets.level("a", 1000.0) == 3.0
    assert buckets.level("a", 5.0) == pytest.approx(0.0)  # a clock that goes back gives nothing


def test_buckets_are_bounded() -> None:
    buckets = Buckets(rate=1.0, burst=1, most=10)
    for number in range(100):
        buckets.take(str(number), 0.0)
    assert buckets.take("99", 0.0)[0] is False
    assert buckets.take("0", 0.0)[0] is True


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_limits_that_make_no_sense_are_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        Buckets(rate, burst)


def test_headers_say_what_is_left_and_when_all_is_back() -> None:
    assert limit_headers(Buckets(2.0, 10), 4.0, 1000.0) == {
        "X-RateLimit-Limit": "10",
        "X-RateLimit-Remaining": "4",
        "X-RateLimit-Reset": "1003",
    }


def test_a_key_is_told_when_to_come_back() -> None:
    limits = RateLimits(rate=0.01, burst=2)
    assert [limits.request("k")["X-RateLimit-Remaining"] for _ in range(2)] == ["1", "0"]
    with pytest.raises(RateLimited) as refused:
        limits.request("k")
    assert refused.value.code == "rate_limited"
    assert refused.value.retry_after is not None
    assert 90 < refused.value.retry_after <= 100
    assert refused.value.headers["X-RateLimit-Remaining"] == "0"
    limits.request("another")


def test_bad_keys_are_limited_by_address() -> None:
    limits = RateLimits(rate=1.0, burst=1, failure_rate=0.001, failure_burst=2)
    limits.failure("10.0.0.1")
    limits.failure("10.0.0.1")
    with pytest.raises(RateLimited):
        limits.failure("10.0.0.1")
    limits.failure("10.0.0.2")
    limits.request("a good key from there")
