"""Kubernetes quantities as numbers."""

from __future__ import annotations

_SUFFIXES = {
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def number(quantity: str) -> float:
    """`500m` is 0.5, `1Gi` is 1073741824. Raises ValueError for what is no quantity."""
    digits = quantity.rstrip("mkKMGTi")
    suffix = quantity[len(digits) :]
    try:
        return float(digits) * (_SUFFIXES[suffix] if suffix else 1.0)
    except (KeyError, ValueError):
        raise ValueError(f"{quantity!r} is not a quantity like 500m, 2 or 1Gi") from None
