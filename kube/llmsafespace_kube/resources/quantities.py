"""Kubernetes quantities: in manifests text or whole numbers, in our objects text, and what they amount to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from llmsafespace_kube.resources.kubernetes import Object

# With a digit above zero somewhere: a limit of zero is no limit.
_POSITIVE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"

if TYPE_CHECKING:
    Quantity = str  # what is left of it once it is in an object: see WithQuantities
else:
    Quantity = Annotated[
        Annotated[int, Meta(ge=1)]
        | Annotated[str, Meta(pattern=rf"^{_POSITIVE}(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=24)],
        Meta(description="A Kubernetes quantity above zero: text such as 500m or 1Gi, or a whole number."),
    ]


class WithQuantities(Object):
    """The base of types with quantities: `cpu: 1` of a manifest is "1" from here on."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value: object = getattr(self, name)
            if type(value) is int:
                setattr(self, name, str(value))


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
