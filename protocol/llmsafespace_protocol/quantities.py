"""Kubernetes resource quantities (kubernetes.io, "Quantity"): "500m", "0.5", "1Gi", "128M", "2e3"."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal("1e3"),
    "M": Decimal("1e6"),
    "G": Decimal("1e9"),
    "T": Decimal("1e12"),
    "P": Decimal("1e15"),
    "E": Decimal("1e18"),
    **{name: Decimal(1024) ** power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<power>[+-]?[0-9]{1,2}))?"
)
MIN_CPU, MAX_CPU = 0.01, 1024.0
MIN_BYTES, MAX_BYTES = 1024**2, 1024**5


def parse(quantity: str | float) -> Decimal:
    """The number that a quantity stands for. Raises ValueError, naming it, when it is not one."""
    if isinstance(quantity, int | float):
        return Decimal(str(quantity))
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(f"got {quantity[:40]!r}")
    scale = Decimal(10) ** int(match["power"]) if match["power"] else _SUFFIXES[match["suffix"] or ""]
    return Decimal(match["number"]) * scale


def number(quantity: str | float) -> float:
    """The value of a quantity: "500m" is 0.5, "1Gi" is 1073741824. Raises ValueError."""
    try:
        return float(parse(quantity))
    except ValueError as error:
        raise ValueError(f"expected a quantity such as 500m, 2 or 1Gi, {error}") from None


def cores(quantity: str | float) -> float:
    """A quantity of CPU in cores. Raises ValueError saying what was expected and what came."""
    try:
        count = parse(quantity)
    except ValueError as error:
        raise ValueError(f'expected "500m" or a number of cores, {error}') from None
    if not Decimal(str(MIN_CPU)) <= count <= Decimal(str(MAX_CPU)):
        raise ValueError(f"expected between 10m and {MAX_CPU:g} cores, got {str(quantity)[:40]}")
    return float(count)


def size(quantity: str | float) -> int:
    """A quantity of memory or storage in bytes. Raises ValueError saying what was expected and what came."""
    try:
        count = parse(quantity)
    except ValueError as error:
        raise ValueError(f'expected "512Mi" or a number of bytes, {error}') from None
    if not MIN_BYTES <= count <= MAX_BYTES:
        raise ValueError(f"expected between 1Mi and 1Pi, got {str(quantity)[:40]}")
    return int(count)


def format_cores(count: float) -> str:
    """Cores as the shortest quantity, rounded up: 1.0 is "1", 0.5 is "500m"."""
    milli = math.ceil(round(count * 1000, 3))
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def format_size(count: int) -> str:
    """Bytes as the shortest exact quantity: 1073741824 is "1Gi"."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        unit = int(_SUFFIXES[suffix])
        if count >= unit and count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)
