"""The audit log as Jupyter events: a real handler gets each entry that was written, and nothing private."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from traitlets.config import Config

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.audit_events import AuditEvents, event_logger, schema
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.store import Store, users

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])


def test_without_handlers_there_is_no_logger() -> None:
    assert event_logger(Config()) is None


async def test_a_file_gets_every_entry(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    config = Config()
    config.EventLogger.handlers = [logging.FileHandler(file)]
    logger = event_logger(config)
    assert logger is not None
    await users.ensure_tenant(store, "acme")
    access = Access(store)
    access.emit_audit(AuditEvents(logger))
    await access.start()
    access.audit(ADA, "sandbox.create", "sb-1", "ok", size=3, env={"SECRET": "s3cret"})
    access.executions.note(ADA, "sb-1", "x" * 10, "rest", size=7)
    access.executions.note(ADA, "sb-1", "y", "stream", "forbidden")
    await access.stop()
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert [event["outcome"] for event in events] == ["ok", "ok", "forbidden"]
    assert events[0]["__schema__"] == schema()["$id"]
    assert events[1]["details"] == {"execution": "x" * 10, "door": "rest", "size": 7}
    assert {(event["tenant"], event["user_id"], event["key_id"]) for event in events} == {
        ("acme", "ada", "k1")
    }
    assert "s3cret" not in file.read_text()


async def test_a_handler_that_fails_loses_no_entry(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    class Fails(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no such host")

    config = Config()
    config.EventLogger.handlers = [Fails()]
    logger = event_logger(config)
    assert logger is not None
    access = Access(store)
    access.emit_audit(AuditEvents(logger))
    await access.start()
    for number in range(3):
        access.audit(ADA, "test", str(number), "ok")
    await access.stop()
    from llmsafespace_gateway.store import audit

    assert len(await audit.entries(store, "acme")) == 3
