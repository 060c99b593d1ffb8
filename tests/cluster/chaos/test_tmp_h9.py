import os

import pytest

from tests.cluster.chaos.test_chaos import arena, draw, pytestmark, under_load  # noqa


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("n", range(int(os.environ.get("H9_N", "1"))))
async def test_more(arena, draw, n):  # noqa
    await under_load(arena, draw, sandboxes=int(os.environ["H9_COUNT"]), every=int(os.environ["H9_EVERY"]))
