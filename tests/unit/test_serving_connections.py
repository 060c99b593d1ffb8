"""When a connection has taken too long: decided from what moved on it and the time, without waiting."""

from __future__ import annotations

from typing import Any

import pytest

from llmsafespace_gateway.serving.connections import Connection, Phase
from llmsafespace_gateway.serving.limits import ServingLimits, reserve, serving_limits

LIMITS = ServingLimits(
    connections=10, per_address=5, descriptor=100, head=15, idle=75, stalled=300, body_window=60
)


class Moved:
    """What a stream says of itself."""

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.waits = False

    def writing(self) -> bool:
        return self.waits


@pytest.fixture
def stream() -> Moved:
    return Moved()


@pytest.fixture
def connection(stream: Any) -> Connection:
    return Connection(stream, "192.0.2.1", "192.0.2.1", 0.0)


def overdue(connection: Connection, now: float) -> bool:
    return connection.overdue(now, LIMITS) is not None


def test_a_head_has_its_time(connection: Connection, stream: Moved) -> None:
    """A byte now and then does not lengthen it."""
    for second in range(16):
        stream.received += 1
        assert not overdue(connection, second)
    assert overdue(connection, 16)


def test_an_idle_connection_stays_longer(connection: Connection) -> None:
    connection.enter(Phase.IDLE, 100)
    assert not overdue(connection, 174)
    assert overdue(connection, 176)


def test_the_next_head_begins_with_its_first_byte(connection: Connection, stream: Moved) -> None:
    connection.enter(Phase.IDLE, 100)
    stream.received += 1
    assert not overdue(connection, 170)
    assert connection.phase is Phase.HEAD
    assert not overdue(connection, 180)
    assert overdue(connection, 186)


@pytest.mark.parametrize(
    ("bytes_a_second", "ends"), [(0, True), (1, True), (12, True), (20, False), (10_000, False)]
)
def test_a_body_must_come(connection: Connection, stream: Moved, bytes_a_second: int, ends: bool) -> None:
    connection.enter(Phase.BODY, 0)
    seen = False
    for second in range(0, 24 * 3600, 10):
        stream.received += bytes_a_second * 10
        seen = seen or overdue(connection, second)
    assert seen is ends


def test_a_body_that_waits_for_us_is_not_the_client_s_fault(connection: Connection) -> None:
    connection.enter(Phase.BODY, 0)
    connection.taking = True
    assert not any(overdue(connection, second) for second in range(1000))
    connection.taking = False
    assert not overdue(connection, 1050)
    assert overdue(connection, 1070)


@pytest.mark.parametrize("phase", [Phase.ANSWER, Phase.BODY, Phase.IDLE])
def test_an_answer_must_be_taken(connection: Connection, stream: Moved, phase: Phase) -> None:
    connection.enter(phase, 0)
    stream.waits = True
    connection.taking = True
    assert not overdue(connection, 0)
    connection.phase = phase
    assert connection.overdue(301, LIMITS) == "answers that nobody took"


def test_a_slow_reader_lives_as_long_as_it_reads(connection: Connection, stream: Moved) -> None:
    connection.enter(Phase.ANSWER, 0)
    stream.waits = True
    for second in range(0, 24 * 3600, 30):
        stream.sent += 30 * 100
        assert not overdue(connection, second)


def test_a_silent_websocket_lives(connection: Connection) -> None:
    """Pings find out whether its client does."""
    connection.enter(Phase.ANSWER, 0)
    assert not any(overdue(connection, hour * 3600) for hour in range(48))


def test_who_is_slow_goes_first(connection: Connection, stream: Moved) -> None:
    connection.enter(Phase.BODY, 0)
    stream.received = 1024
    assert connection.is_slow(6, 5)
    stream.received = 100 * 1024
    assert not connection.is_slow(6, 5)
    connection.enter(Phase.ANSWER, 10)
    connection.overdue(10, LIMITS)
    stream.waits = True
    assert not connection.is_slow(14, 5)
    stream.sent += 1
    connection.overdue(14, LIMITS)
    assert not connection.is_slow(18, 5)
    assert connection.is_slow(20, 5)


@pytest.mark.parametrize("descriptors", [64, 256, 1024, 65_536, 1 << 20])
def test_connections_never_take_all_descriptors(descriptors: int) -> None:
    limits = serving_limits(descriptors)
    assert 1 <= limits.per_address <= limits.connections
    assert limits.connections * 2 + reserve(descriptors) <= descriptors
    assert limits.descriptor < descriptors
    assert serving_limits(descriptors, 10**9).connections == serving_limits(descriptors, 0).connections or (
        descriptors > 20_000
    )
