"""Executions and commands in the words of the REST API."""

from __future__ import annotations

from typing import Literal

from llmsafespace_gateway import bulk
from llmsafespace_gateway.access.executions import Kind
from llmsafespace_gateway.rest.types import (
    ExecutionAnswer,
    ExecutionErrorAnswer,
    ExecutionSummary,
    ResultAnswer,
)
from llmsafespace_gateway.services.types import Collected, moment
from llmsafespace_protocol.requests import CommandInfo, ExecutionInfo

Status = Literal["queued", "running", "completed", "failed"]


def status_of(end: str | None, running: bool = True) -> Status:
    """completed: it came to its own end; failed: something else ended it."""
    if end is None:
        return "running" if running else "queued"
    return "completed" if end in ("ok", "error") else "failed"


def answer(kind: Kind, collected: Collected) -> ExecutionAnswer:
    """The REST answer of an execution that has ended; empties `collected.results`."""
    end = collected.end
    return ExecutionAnswer(
        execution_id=end.execution_id,
        type=kind,
        status=status_of(end.end),
        started_at=end.started_at,
        completed_at=end.completed_at,
        exit_code=end.exit_code,
        stdout=collected.stdout,
        stderr=collected.stderr,
        results=[
            ResultAnswer(
                data=result.data,
                metadata=result.metadata,
                is_main_result=result.is_main_result,
                display_id=result.display_id,
            )
            for result in bulk.drained(collected.results)
        ],
        end=end.end,  # type: ignore[arg-type]  # executions.ENDS are these words
        message=end.message,
        error=ExecutionErrorAnswer(
            name=collected.error.name, value=collected.error.value, traceback=collected.error.traceback
        )
        if collected.error is not None
        else None,
        execution_count=end.execution_count,
        context=end.context,
        truncated=collected.truncated,
        missed=collected.missed,
    )


def summary(info: ExecutionInfo | CommandInfo) -> ExecutionSummary:
    """An execution or a command without its output."""
    if isinstance(info, CommandInfo):
        end = None if info.running else (info.end or "ok")
        return ExecutionSummary(
            execution_id=info.id,
            type="command",
            status=status_of(end),
            started_at=moment(info.started_at),
            completed_at=moment(info.completed_at) if info.completed_at is not None else None,
            end=end,  # type: ignore[arg-type]
            exit_code=info.exit_code,
        )
    return ExecutionSummary(
        execution_id=info.id,
        status=status_of(info.end, info.status != "queued"),
        started_at=moment(info.started_at),
        completed_at=moment(info.completed_at) if info.completed_at is not None else None,
        end=info.end,  # type: ignore[arg-type]
        message=info.message,
        exit_code=None if info.end is None else (0 if info.end == "ok" else 1),
        execution_count=info.execution_count,
        context=info.context,
    )
