"""What a warm pool may be. Pure functions; errors name the fields as the API has them."""

from __future__ import annotations

from llmsafespace_gateway.backends.base import Resources, WarmPoolSpec
from llmsafespace_gateway.errors import invalid
from llmsafespace_protocol.quantities import format_cores, format_size

LEAST_MEMORY = 32 * 1024**2  # what a warm sandbox takes, however little it is allowed


def check(spec: WarmPoolSpec) -> None:
    """Raise ApiError(invalid_request) for sizes and packages that make no sense."""
    if spec.max_size and spec.max_size < spec.min_size:
        raise invalid(
            "body.maxSize", f"expected 0 or at least minSize ({spec.min_size}), got {spec.max_size}"
        )
    for index, package in enumerate(spec.preload_packages):
        check_package(package, f"body.preloadPackages[{index}]")


def check_package(package: str, field: str) -> None:
    """A package is data, never an option of its manager. Raises ApiError(invalid_request)."""
    if package.startswith("-") or any(ord(char) < 32 for char in package):
        raise invalid(field, f"expected a package's name, got {package[:60]!r}")


def check_size(spec: WarmPoolSpec, capacity: Resources | None) -> None:
    """Raise ApiError(invalid_request) where one sandbox, or all that stay warm, need more than there is."""
    if capacity is None:
        return
    own = spec.resources
    if not own.fits(capacity):
        raise invalid(
            "body.resources",
            f"expected at most {_described(capacity)}, which is all there is; got {_described(own)}",
        )
    each = max(own.memory, LEAST_MEMORY)
    if spec.min_size * each > capacity.memory:
        raise invalid(
            "body.minSize",
            f"expected at most {capacity.memory // each}: there are {format_size(capacity.memory)} of "
            f"memory, and {spec.min_size} sandboxes of {format_size(own.memory)} were asked for",
        )


def _described(amount: Resources) -> str:
    return (
        f"cpu {format_cores(amount.cpu)}, memory {format_size(amount.memory)} and "
        f"ephemeralStorage {format_size(amount.storage)}"
    )
