"""Which environment variables a process must have from its start."""

from __future__ import annotations

import pytest

from llmsafespace_protocol.environment import early


@pytest.mark.parametrize(
    "name",
    ["PYTHONHASHSEED", "LD_PRELOAD", "LC_ALL", "LANG", "OMP_NUM_THREADS", "MKL_DEBUG", "GLIBC_TUNABLES"],
)
def test_what_is_read_at_start_cannot_be_bound_late(name: str) -> None:
    assert early({name: "1", "KERNEL_USER": "x", "PATH": "/bin"}) == {name: "1"}


def test_everything_else_can() -> None:
    env = {"TOKEN": "x", "PYTHONUNBUFFERED": "1", "TZ": "UTC", "HOME": "/", "MPLBACKEND": "Agg"}
    assert early(env) == {}
