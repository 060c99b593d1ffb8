"""A gateway that is stopped, killed and started under clients that work: no client notices."""

from __future__ import annotations

import pytest

from tests.conftest import Gateway
from tests.drill import Drill


@pytest.mark.parametrize(
    "rounds", [4, pytest.param(100, marks=[pytest.mark.heavy, pytest.mark.timeout(3600)])]
)
async def test_no_client_notices_restarts(own_gateway: Gateway, rounds: int) -> None:
    def restart() -> None:
        assert own_gateway.stop() == 0
        own_gateway.start()

    def kill() -> None:
        own_gateway.kill()
        own_gateway.start()

    drill = Drill(own_gateway.url, own_gateway.admin_key, runtime="python")
    await drill.during([restart, kill] * (rounds // 2))
    assert drill.failures == []
