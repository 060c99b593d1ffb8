"""Kubernetes quantities in manifests: text or whole numbers there, always text in our objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from llmsafespace_kube.resources.kubernetes import Object

# At least one digit above zero: Kubernetes treats a limit of zero as no limit.
_POSITIVE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"

if TYPE_CHECKING:
    Quantity = str  # WithQuantities converts numbers to text
else:
    Quantity = Annotated[
        Annotated[int, Meta(ge=1)]
        | Annotated[str, Meta(pattern=rf"^{_POSITIVE}(m|k|Ki|M|Mi|G|Gi|T|Ti)?$", max_length=24)],
        Meta(description="A Kubernetes quantity above zero: text such as 500m or 1Gi, or a whole number."),
    ]


class WithQuantities(Object):
    """Base of types with quantities. Converts whole numbers to text: `cpu: 1` becomes "1"."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value: object = getattr(self, name)
            if type(value) is int:
                setattr(self, name, str(value))
