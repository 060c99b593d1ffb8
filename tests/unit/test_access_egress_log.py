"""What sandboxes cause to be written is bounded: egress decisions, the audit log, lines of the log."""

from __future__ import annotations

import logging
import random
from typing import Any

from llmsafespace_gateway.access import Access, local_principal
from llmsafespace_gateway.access.egress_log import HOSTS, OTHERS, EgressLog
from llmsafespace_gateway.logs import Flood
from llmsafespace_gateway.store import Store
from tests.services import people_of, rest


class Written:
    """An egress log on a clock of its own, and what it wrote."""

    def __init__(self) -> None:
        self.now = 6000.0
        self.rows: list[tuple[Any, ...]] = []
        self.log = EgressLog(lambda *row: self.rows.append(row), lambda: self.now)

    def note(self, host: str, outcome: str = "denied", sandbox: str = "sb-1", port: int = 443) -> None:
        self.log.note(lambda: ("acme", "ada", None), sandbox, host, port, outcome, "no rule")


def test_a_minute_of_one_host_is_one_entry() -> None:
    written = Written()
    for port in range(1, 50_001):
        written.note("evil.example", port=port)
    written.log.flush_past()
    assert written.rows == []
    written.now += 60
    written.log.flush_past()
    details = {"host": "evil.example", "port": 1, "reason": "no rule", "count": 50_000}
    assert written.rows == [(("acme", "ada", None), "egress", "sb-1", "denied", details)]


def test_outcomes_sandboxes_and_minutes_are_apart() -> None:
    written = Written()
    for _ in range(3):
        written.note("a", "allowed")
        written.note("a", "denied")
        written.note("a", "denied", "sb-2")
        written.now += 60
    written.log.flush()
    assert len(written.rows) == 9
    assert {row[4]["count"] for row in written.rows} == {1}


def test_only_so_many_hosts_are_named_in_a_minute() -> None:
    """Also where the log is read in between; and other sandboxes have room of their own."""
    written = Written()
    for number in range(10_000):
        written.note(f"{number}.example", random.choice(("allowed", "denied")))
        if number % 100 == 0:
            written.log.flush()
    written.note("fine.example", sandbox="sb-2")
    written.log.flush()
    named = {row[4]["host"] for row in written.rows if row[2] == "sb-1"}
    assert len(named) == HOSTS + 1
    assert OTHERS in named
    assert sum(row[4]["count"] for row in written.rows) == 10_001
    assert len(written.rows) <= HOSTS + 1 + 2 * 101


async def test_reading_the_audit_log_shows_this_minute(store: Store) -> None:
    access = Access(store, anonymous=local_principal())
    service = people_of(access, store)
    await access.start()
    try:
        row = type("Row", (), {"id": "sb-1", "tenant": "default", "owner": "local", "cpu": 1.0, "memory": 1})
        access.sandbox_adopted(row)  # type: ignore[arg-type]
        for _ in range(1000):
            access.egress("sb-1", "evil.example", 443, "denied", "no rule")
        access.sandbox_ended("sb-1")
        (entry,) = await service.audit_log(rest(local_principal()), action="egress")
        assert (entry.target, entry.outcome, entry.details["count"]) == ("sb-1", "denied", 1000)
        assert (entry.tenant, entry.user_id) == ("default", "local")
    finally:
        await access.stop()


def test_a_flood_of_one_kind_of_line_is_cut_and_counted() -> None:
    """Other kinds pass; what was left out is said about once a second."""
    now = [0.0]
    flood = Flood(rate=10.0, burst=20, clock=lambda: now[0])

    def line(message: str, *values: object) -> logging.LogRecord:
        return logging.LogRecord("egress", logging.INFO, "", 0, message, values, None)

    passed, left_out = 0, 0
    for _ in range(10_000):
        record = line("egress denied %s", random.random())
        passes = flood.filter(record)
        passed += passes
        left_out += getattr(record, "fields", {}).get("left_out", 0) if passes else 0
        now[0] += 0.001
    assert 20 + 80 <= passed <= 20 + 100 + 12
    assert flood.filter(line("another kind"))
    now[0] += 100
    record = line("egress denied %s", 1)
    assert flood.filter(record)
    left_out += getattr(record, "fields", {}).get("left_out", 0)
    assert abs(passed + left_out - 10_000) <= 12
    assert not hasattr(line("egress denied %s", 2), "fields")
