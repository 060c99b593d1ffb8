"""The audit log as Jupyter events, for handlers that the configuration names: a file, syslog, HTTP.

In a configuration file, for instance:

    import logging
    c.EventLogger.handlers = [logging.FileHandler("/var/log/llmsafespace-audit.jsonl")]

Each entry is one event, emitted once its entry has been written; the schema is `schemas/audit.v1.json`. What
a handler cannot deliver is its own concern (see logging.Handler.handleError): the audit log has it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llmsafespace_gateway.store.rows import AuditRow

if TYPE_CHECKING:
    from jupyter_events import EventLogger
    from traitlets.config import Config

log = logging.getLogger(__name__)


def schema() -> dict[str, Any]:
    """The published schema of the events."""
    text = files(__package__).joinpath("schemas", "audit.v1.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def event_logger(config: Config) -> EventLogger | None:
    """The EventLogger of a configuration with handlers, ready for `emit`; None where it names none."""
    if not config.get("EventLogger", {}).get("handlers"):
        return None
    from jupyter_events import EventLogger  # at first use: it brings a validator of JSON Schema

    logger = EventLogger(config=config)
    logger.register_event_schema(schema())
    return logger


class AuditEvents:
    """Emits entries in a thread: handlers may write to a disk or a network."""

    def __init__(self, logger: EventLogger) -> None:
        self._logger = logger
        self._id = schema()["$id"]

    async def emit(self, rows: list[AuditRow]) -> None:
        """Emit an event for each entry, in order."""
        await asyncio.to_thread(self._emit, rows)

    def _emit(self, rows: Iterable[AuditRow]) -> None:
        for row in rows:
            at = datetime.fromtimestamp(row.at, UTC)
            names = ("id", "tenant", "user_id", "key_id", "action", "target", "outcome", "details")
            data = {name: getattr(row, name) for name in names} | {"at": at.isoformat()}
            try:
                self._logger.emit(schema_id=self._id, data=data, timestamp_override=at)
            except Exception:
                log.exception("audit entry %s could not be emitted as an event", row.id)
