"""Whose end is told: never that of a living sandbox because of another's record."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from llmsafespace_gateway.backends.base import Resources, Start
from llmsafespace_gateway.backends.local import launch, limits, records
from llmsafespace_gateway.backends.local.plans import Host
from llmsafespace_gateway.backends.local.records import Claimed, EndRecord, State
from llmsafespace_gateway.backends.local.registry import Entry, Registry

DEAD, LIVING, OTHER = "dd" * 8, "aa" * 8, "00" * 8


class Made:
    """A registry without keepers: each sandbox is a folder whose keeper was killed just now."""

    def __init__(self, folder: Path) -> None:
        for name in ("sandboxes", "ended"):
            (folder / name).mkdir()
        self.host = Host(
            data_dir=folder, python=sys.executable, bwrap=None, is_root=False, hierarchy=limits.NONE
        )
        self.registry = Registry(self.host, None, lambda entry: None)

    def add(self, name: str, claimed: Claimed | None = None) -> Entry:
        folder = self.host.data_dir / "sandboxes" / name
        launch._make_folder(self.host, folder)
        state = State(
            name=name,
            token="00",
            runtime="probe",
            languages=("python",),
            recipe="",
            pool="warm",
            resources=Resources(),
            isolation={},
            uid=0,
            started_at=time.time(),
            cgroups=(),
        )
        records.write(folder / "state.json", state)
        if claimed is not None:
            records.write(folder / "claim.json", claimed)
        return self.registry.add(state, claimed)

    async def first_news(self) -> tuple[str, str]:
        news = self.registry.news()
        ended = await asyncio.wait_for(anext(news), 30)
        await news.aclose()
        return ended.sandbox_id, ended.end


def claimed(sandbox_id: str) -> Claimed:
    return Claimed(sandbox_id=sandbox_id, owner="ada", tenant="default", start=Start(kind="warm", reason=""))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.mark.parametrize("told", [False, True], ids=["killed keeper", "keeper's own record"])
async def test_a_claim_that_failed_ends_no_other_sandbox_of_this_id(made: Made, told: bool) -> None:
    """The warm sandbox was dead already; the same id was given another one, which lives."""
    dead, wanted = made.add(DEAD), claimed("sb-a")
    assert not await made.registry.claim(dead, wanted)
    if told:  # by a keeper that read the claim on its way out
        record = EndRecord(sandbox_id="sb-a", end="lost")
        records.write(made.host.data_dir / "ended" / f"{DEAD}.json", record)
    living = made.add(LIVING, wanted)
    await made.registry._conclude(DEAD)
    assert made.registry.fate("sb-a") is None
    assert made.registry.get("sb-a") is living
    made.add(OTHER, claimed("sb-b"))
    await made.registry._conclude(OTHER)
    assert await made.first_news() == ("sb-b", "lost")
    assert [path.name for path in (made.host.data_dir / "ended").glob(f"{DEAD}*")] == []


async def test_a_claim_that_failed_leaves_no_claim_for_the_next_gateway(made: Made) -> None:
    """The gateway dies before it has swept the dead sandbox: the next one sweeps, and tells nobody."""
    assert not await made.registry.claim(made.add(DEAD), claimed("sb-a"))
    after = Registry(made.host, None, lambda entry: None)
    await after.start()
    try:
        assert not after._news
        assert list((made.host.data_dir / "ended").iterdir()) == []
    finally:
        await after.stop()


async def test_the_end_of_a_claimed_sandbox_is_told(made: Made) -> None:
    made.add(LIVING, claimed("sb-a"))
    await made.registry._conclude(LIVING)
    assert await made.first_news() == ("sb-a", "lost")
