"""Messages for people that several modules use."""

from __future__ import annotations

from collections.abc import Iterable


def not_served(kind: str, namespace: str, served: Iterable[str]) -> str:
    """Return the message for an object in a namespace that no operator serves: what to do."""
    names = ", ".join(sorted(served))
    return (
        f"no operator serves {kind} objects in the namespace {namespace}, so it will never start: create it "
        f"in one of {names}, or ask an administrator to add this namespace to the chart's values"
    )
