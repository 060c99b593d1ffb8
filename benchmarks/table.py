"""Results as text: one line a row, also of a run that is not over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.measuring import RAW, Values


def shown(value: Any) -> str:
    """A value of any row as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    if isinstance(value, tuple | list):
        return f"{shown(value[0])} ({shown(value[1])})"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _first(value: Any) -> float | None:
    if isinstance(value, dict):
        value = None if "failed" in value else next(iter(value.values()), None)
    if isinstance(value, tuple | list):
        value = value[0]
    return value if isinstance(value, int | float) else None


def ratio(values: Values, ours: str, other: str) -> str:
    """Our first number over `other`'s."""
    mine, theirs = _first(values.get(ours)), _first(values.get(other))
    return f"{mine / theirs:.2f}" if mine is not None and theirs else "-"


def table(results: Mapping[str, Values], about: Mapping[str, str], ours: str, others: list[str]) -> str:
    """All rows so far; `about` says what each measures, `others` are the columns beside ours."""
    lines = [["row", ours, RAW, *others, *(f"/ {name}" for name in (RAW, *others))]]
    for row, values in results.items():
        if "failed" in values:
            values = {ours: values}
        cells = [shown(values[name]) if name in values else "-" for name in (ours, RAW, *others)]
        ratios = [ratio(values, ours, name) for name in (RAW, *others)]
        lines.append([about.get(row, row), *cells, *ratios])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
