"""Random requests through the door's judge and the real local backend: what is let in, is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llmsafespace_gateway.backends.base import EgressRule, Resources
from llmsafespace_gateway.errors import ApiError
from tests.integration import local_support as support
from tests.integration.sandboxes_support import ADA, House, wanted

MIB = 1024**2
LABEL = st.text("ab1x-_*", min_size=1, max_size=4)
NAMES = st.one_of(
    st.lists(LABEL, min_size=1, max_size=3).map(".".join),
    st.sampled_from(
        ["127.1", "*.com", "0x7f.1", "example.org", "*.example.org", "10.0.0.1", "::1", "[::1]", "ä.de"]
    ),
)
REQUESTS = st.fixed_dictionaries(
    {
        "egress": st.lists(st.builds(EgressRule, NAMES, st.tuples(st.integers(0, 65_600))), max_size=2).map(
            tuple
        ),
        "env": st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=3),
        "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        "timezone": st.sampled_from([None, "UTC", "../x"]),
        "resources": st.builds(
            Resources,
            cpu=st.sampled_from([0.5, 1.0]),
            memory=st.sampled_from([128 * MIB, 1024**5]),
            storage=st.sampled_from([64 * MIB, 1024**4]),
        ),
    }
)


async def _try(many: list[dict[str, Any]]) -> None:
    async with support.data_folder() as folder:
        house = House(folder)
        async with house.open():
            for each in many:
                refused: ApiError | None = None
                try:
                    row = await house.sandboxes.create(ADA, wanted(**each))
                except ApiError as error:
                    refused = error
                if refused is None:
                    assert row.state == "running"
                    await house.sandboxes.delete(row.id)
                else:
                    assert refused.status == 400, (each, refused)
                    assert refused.details["field"]
                assert house.folders() == []
                assert house.egress._gates == {}


@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(REQUESTS, min_size=6, max_size=12))
def test_what_is_let_in_is_made(many: list[dict[str, Any]]) -> None:
    asyncio.run(_try(many))


@pytest.mark.heavy
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(REQUESTS, min_size=10, max_size=20))
def test_what_is_let_in_is_made_many_times(many: list[dict[str, Any]]) -> None:
    asyncio.run(_try(many))
