"""Kubernetes quantities to cores and bytes, and back."""

from __future__ import annotations

import pytest

from llmsafespace_protocol import quantities


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("500m", 0.5),
        ("1", 1.0),
        (2, 2.0),
        (0.25, 0.25),
        ("1.5", 1.5),
        ("0.1", 0.1),
        ("1e1", 10.0),
        (".5", 0.5),
    ],
)
def test_cores(text: str | float, cores: float) -> None:
    assert quantities.cores(text) == cores


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1Gi", 1024**3),
        ("512Mi", 512 * 1024**2),
        ("128M", 128_000_000),
        (1048576, 1048576),
        ("1.5Gi", 3 * 512 * 1024**2),
        ("2e9", 2_000_000_000),
        ("1048576k", 1_048_576_000),
    ],
)
def test_sizes(text: str | float, size: int) -> None:
    assert quantities.size(text) == size


@pytest.mark.parametrize(
    "text", ["", "m", "1 Gi", "-1", "1mi", "Gi", "0x10", "1e999", "٣", "nan", "1Gi\n", 0, -1]
)
def test_no_cores(text: str | float) -> None:
    with pytest.raises(ValueError, match="expected"):
        quantities.cores(text)


@pytest.mark.parametrize("text", ["", "1", "512", "1Ki", "1Ei", "9" * 19, "-1Gi", "1GiB", 0.5])
def test_no_sizes(text: str | float) -> None:
    with pytest.raises(ValueError, match="expected"):
        quantities.size(text)


@pytest.mark.parametrize("text", ["500m", "1", "10m", "1500m"])
def test_cores_come_back_as_they_were(text: str) -> None:
    assert quantities.format_cores(quantities.cores(text)) == text


@pytest.mark.parametrize("text", ["1Gi", "512Mi", "1Ti", "1536Mi", "1048577"])
def test_sizes_come_back_as_they_were(text: str) -> None:
    assert quantities.format_size(quantities.size(text)) == text
