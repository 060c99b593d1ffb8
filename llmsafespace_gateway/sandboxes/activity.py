"""What the relay has seen of each kernel lately, kept in memory and written back in batches."""

from __future__ import annotations

import time

import msgspec

from llmsafespace_gateway.store.rows import KernelRow


class _Note(msgspec.Struct):
    last_activity: float
    state: str | None = None
    connections: int = 0


class Activity:
    """Notes per kernel id. Cheap enough for every status message."""

    def __init__(self) -> None:
        self._notes: dict[str, _Note] = {}
        self._dirty: set[str] = set()

    def note(self, kernel_id: str, state: str | None = None, connections_delta: int = 0) -> None:
        """Something happened on a kernel now; `state` is its execution state where that is known."""
        note = self._notes.get(kernel_id)
        if note is None:
            note = self._notes[kernel_id] = _Note(0.0)
        note.last_activity = time.time()
        if state is not None:
            note.state = state
        note.connections = max(0, note.connections + connections_delta)
        self._dirty.add(kernel_id)

    def overlay(self, row: KernelRow) -> KernelRow:
        """`row` with what is known better here."""
        note = self._notes.get(row.id)
        if note is None:
            return row
        return msgspec.structs.replace(
            row,
            last_activity=max(row.last_activity, note.last_activity),
            execution_state=note.state or row.execution_state,
            connections=note.connections,
        )

    def take_dirty(self) -> list[tuple[str, float, str | None, int]]:
        """(kernel id, last activity, state, connections) of what changed since the last call."""
        dirty, self._dirty = self._dirty, set()
        return [
            (kernel_id, note.last_activity, note.state, note.connections)
            for kernel_id in dirty
            if (note := self._notes.get(kernel_id)) is not None
        ]

    def forget(self, kernel_id: str) -> None:
        """A kernel is gone."""
        self._notes.pop(kernel_id, None)
        self._dirty.discard(kernel_id)
