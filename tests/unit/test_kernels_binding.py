"""What can be bound late, and a cell's environment."""

from __future__ import annotations

import pytest

from llmsafespace_agent.kernels.binding import cannot_bind_late


@pytest.mark.parametrize(
    "name", ["PYTHONHASHSEED", "LD_PRELOAD", "LC_ALL", "LANG", "OMP_NUM_THREADS", "MKL_DEBUG"]
)
def test_what_is_read_at_start_cannot_be_bound_late(name: str) -> None:
    reason = cannot_bind_late({"A": "1", name: "x"})
    assert reason is not None
    assert reason.startswith(f"{name}: ")


def test_everything_else_can() -> None:
    assert (
        cannot_bind_late({"TOKEN": "x", "PATH": "/bin", "PYTHONUNBUFFERED": "1", "TZ": "UTC", "HOME": "/"})
        is None
    )
