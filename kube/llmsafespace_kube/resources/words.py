"""Sentences for people that several parts say."""

from __future__ import annotations

from collections.abc import Iterable


def not_served(kind: str, namespace: str, served: Iterable[str]) -> str:
    """What to do about an object where nobody looks."""
    names = ", ".join(sorted(served))
    return (
        f"no operator serves {kind} objects in the namespace {namespace}, so nothing becomes of it: make it "
        f"in one of {names}, or have an administrator add this one to the chart's values"
    )
