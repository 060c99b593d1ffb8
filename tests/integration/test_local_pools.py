"""Warm pools of real sandboxes. Also run as an ordinary user (see test_local_user)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.backends.base import Resources, WarmPoolSpec
from llmsafespace_gateway.backends.local.starts import Starts
from llmsafespace_gateway.errors import ApiError
from tests.integration import local_support as support

MIB = support.MIB


async def test_claims_are_warm_and_the_pool_fills_up_again() -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        claim = await backend.claim(support.spec("sb-a"))
        assert (claim.start.kind, claim.start.reason) == ("warm", "")
        assert await support.run(backend, "sb-a", "print('works')") == "works"
        await support.available(backend, "warm", 1)
        status = await backend.pool_status(support.pool())
        assert (status.assigned, status.conditions[0].status) == (1, "True")
        await backend.destroy("sb-a")
        assert (await backend.pool_status(support.pool())).assigned == 0


async def test_one_sandbox_is_never_two_peoples() -> None:
    async with support.fresh(pools=[support.pool(min_size=2)]) as backend:
        await support.available(backend, "warm", 2)
        claims = await asyncio.gather(*(backend.claim(support.spec(f"sb-{n}")) for n in range(4)))
        kinds = sorted(claim.start.kind for claim in claims)
        assert kinds.count("warm") >= 2
        names = {support.entry_of(backend, f"sb-{n}").state.name for n in range(4)}
        assert len(names) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_warm_pool": False}, "the request asked for no warm pool"),
        ({"resources": Resources(cpu=1.0, memory=256 * MIB, storage=MIB)}, "more resources"),
        ({"runtime": "other"}, "runtime other"),
        ({"security_level": "high"}, "security level high"),
        ({"env": {"OMP_NUM_THREADS": "1", "FINE": "x"}}, "OMP_NUM_THREADS"),
    ],
)
async def test_why_a_start_is_cold(changes: dict[str, Any], reason: str) -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        claim = await backend.claim(support.spec("sb-a", **changes))
        assert claim.start.kind == "cold"
        assert reason in claim.start.reason


async def test_env_that_can_be_bound_late_stays_warm_and_warnings_are_told() -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        claim = await backend.claim(support.spec("sb-a", runtime="nearby", env={"MY_TOKEN": "x"}))
        assert claim.start.kind == "warm"
        assert claim.start.warnings == ("nearby is served by probe",)


async def test_another_tenants_pool_is_not_served_nor_spoken_of() -> None:
    async with support.fresh(pools=[support.pool(tenant="rich")]) as backend:
        await support.available(backend, support.pool(tenant="rich"), 1)
        assert (await backend.claim(support.spec("sb-a"))).start.reason == "there is no warm pool"
        assert (await backend.claim(support.spec("sb-b", tenant="rich"))).start.kind == "warm"


async def test_change_and_delete() -> None:
    async with support.fresh() as backend:
        await backend.apply_pool(support.pool(min_size=1))
        await support.available(backend, "warm", 1)
        before = {entry.state.name for entry in backend._registry.entries.values()}
        more = Resources(cpu=1.0, memory=192 * MIB, storage=64 * MIB)
        await backend.apply_pool(support.pool(min_size=2, resources=more))
        await support.available(backend, "warm", 2)
        after = {entry.state.name for entry in backend._registry.entries.values()}
        await support.eventually(lambda: not before & set(backend._registry.entries))
        assert after
        claim = await backend.claim(support.spec("sb-a"))
        assert claim.isolation["limits"]["memory"]["bytes"] == 192 * MIB
        await backend.delete_pool(support.pool())
        with pytest.raises(ApiError, match="no warm pool"):
            await backend.pool_status(support.pool())
        assert [place.sandbox_id for place in await backend.living()] == ["sb-a"]
        assert len(list((backend._data_dir / "sandboxes").iterdir())) == 1


async def test_failing_starts_are_told_and_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmsafespace_gateway.backends.local import launch

    starts = 0

    def failing(*arguments: object, **options: object) -> None:
        nonlocal starts
        starts += 1
        raise launch.unavailable("no room today")

    monkeypatch.setattr(launch, "start", failing)
    async with support.fresh(pools=[support.pool(min_size=3)]) as backend:

        async def told() -> bool:
            status = await backend.pool_status(support.pool()) if backend._pools._pools else None
            return bool(status and status.conditions[0].reason == "StartFailed")

        await support.eventually(told)
        assert "no room today" in (await backend.pool_status(support.pool())).conditions[0].message
        assert starts <= 6


async def test_a_warm_sandbox_that_dies_is_replaced() -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        await support.available(backend, "warm", 1)
        (entry,) = backend._registry.entries.values()
        from llmsafespace_gateway.backends.local import launch

        await launch.end(entry.folder, "terminated")
        await support.eventually(lambda: entry.state.name not in backend._registry.entries)
        await support.available(backend, "warm", 1)


async def test_warm_sandboxes_give_way_and_claimed_ones_do_not() -> None:
    async with support.fresh(pools=[support.pool()]) as backend:
        if "cpu" not in backend._host.hierarchy.folders:
            pytest.skip("no cpu cgroup here")
        await support.available(backend, "warm", 1)
        (entry,) = backend._registry.entries.values()
        file = "cpu.weight" if backend._host.hierarchy.version == 2 else "cpu.shares"
        controls = [Path(path) / file for path in entry.state.cgroups if (Path(path) / file).exists()]
        least = int(controls[0].read_text())
        await backend.claim(support.spec("sb-a"))
        assert int(controls[0].read_text()) >= 10 * least


def _scripted(name: str = "coded", **changes: object) -> WarmPoolSpec:
    return support.pool(name, preload_scripts=(("evil", "sum = 1337"),), owner="mallory", **changes)


async def test_code_of_a_pool_goes_to_those_who_ask_for_it() -> None:
    """A plain request is cold rather than served by a colleague's, and even by its owner's own, preload."""
    async with support.fresh() as backend:
        await backend.apply_pool(_scripted(tenant="default"))
        await support.available(backend, _scripted(tenant="default"), 1)
        for number, owner in enumerate(("alice", "mallory")):
            plain = await backend.claim(support.spec(f"sb-{number}", owner=owner))
            assert (plain.start.kind, plain.start.pool) == ("cold", None)
            assert "warmPool" in plain.start.reason
        asked = await backend.claim(support.spec("sb-asked", warm_pool="coded"))
        assert (asked.start.kind, asked.start.pool, asked.start.pool_owner) == ("warm", "coded", "mallory")


async def test_published_pools_serve_plain_requests_and_say_so() -> None:
    async with support.fresh() as backend:
        wanted = _scripted(tenant="default", published=True, min_size=2)
        await backend.apply_pool(wanted)
        await support.available(backend, wanted, 2)
        for number, tenant in enumerate(("default", "other")):
            claim = await backend.claim(support.spec(f"sb-{number}", tenant=tenant))
            assert (claim.start.kind, claim.start.pool, claim.start.pool_owner) == (
                "warm",
                "coded",
                "published",
            )
        await backend.apply_pool(_scripted(tenant="default"))  # taken back
        assert (await backend.claim(support.spec("sb-later"))).start.kind == "cold"


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"warm_pool": "nowhere"}, "not_found", "nowhere"),
        ({"warm_pool": "coded", "tenant": "other"}, "not_found", "that you can see"),
        ({"warm_pool": "coded", "runtime": "other"}, "invalid_request", "its runtime is probe"),
        ({"warm_pool": "coded", "security_level": "high"}, "invalid_request", "security level"),
        (
            {"warm_pool": "coded", "resources": Resources(cpu=9.0, memory=MIB, storage=MIB)},
            "invalid_request",
            "asks for 9",
        ),
    ],
    ids=["unknown", "another tenant's", "runtime", "security level", "resources"],
)
async def test_a_named_pool_that_cannot_serve(changes: dict[str, Any], code: str, says: str) -> None:
    """Nothing is started, and another tenant's pool is as one that does not exist."""
    async with support.fresh() as backend:
        await backend.apply_pool(_scripted(tenant="default", min_size=0))
        with pytest.raises(ApiError) as refused:
            await backend.claim(support.spec("sb-a", **changes))
        assert refused.value.code == code
        assert says in refused.value.message
        assert await backend.living() == []


async def test_an_empty_named_pool_is_cold_with_its_own_preload() -> None:
    async with support.fresh() as backend:
        await backend.apply_pool(_scripted(tenant="default", min_size=0))
        claim = await backend.claim(support.spec("sb-a", warm_pool="coded"))
        assert (claim.start.kind, claim.start.pool) == ("cold", "coded")
        assert claim.start.reason == "the warm pool coded was empty"
        plain = support.spec("sb-b", env={"PYTHONHASHSEED": "0"}, warm_pool="coded")
        assert "PYTHONHASHSEED" in (await backend.claim(plain)).start.reason


async def test_two_tenants_pools_of_one_name_are_two() -> None:
    async with support.fresh() as backend:
        mine, theirs = support.pool(tenant="default"), support.pool(tenant="other", min_size=0)
        await backend.apply_pool(mine)
        await backend.apply_pool(theirs)
        await support.available(backend, mine, 1)
        assert (await backend.pool_status(theirs)).available == 0
        taken = await backend.claim(support.spec("sb-a", tenant="other", warm_pool="warm"))
        assert taken.start.kind == "cold"
        await backend.delete_pool(theirs)
        assert (await backend.pool_status(mine)).available == 1


async def test_a_pool_that_hangs_holds_up_nobody() -> None:
    """Its preload script never returns: other pools fill, people start, and it has one sandbox on the way."""
    bad = support.pool("bad", min_size=6, runtime="other", preload_scripts=(("hang", "while True: pass"),))
    async with support.fresh(pools=[bad, support.pool("good", min_size=3)]) as backend:
        await support.available(backend, support.pool("good"), 3)
        status = await backend.pool_status(bad)
        assert (status.available, status.pending) == (0, 1)
        cold = await backend.claim(support.spec("sb-cold", use_warm_pool=False))
        assert cold.start.kind == "cold"
        assert (await backend.claim(support.spec("sb-warm"))).start.kind == "warm"
        await support.available(backend, support.pool("good"), 3)


async def test_a_burst_is_served_and_the_pool_is_full_again() -> None:
    """Thirty at once on a pool of five; who waits for a turn gets a warm one that comes meanwhile."""
    async with support.fresh(pools=[support.pool(min_size=5)]) as backend:
        await support.available(backend, "warm", 5)
        small = Resources(cpu=0.5, memory=64 * MIB, storage=16 * MIB)
        wanted = [support.spec(f"sb-{n}", resources=small) for n in range(30)]
        claims = await asyncio.gather(*map(backend.claim, wanted))
        kinds = [claim.start.kind for claim in claims]
        assert len(kinds) == 30
        assert kinds.count("warm") >= 5
        assert len(await backend.living()) == 30
        await support.available(backend, "warm", 5)
        assert backend._starts._free == Starts()._free


async def test_a_claim_that_is_given_up_while_it_waits_gives_its_turn_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with support.fresh() as backend:
        monkeypatch.setattr(backend, "_starts", Starts(1))
        async with backend._starts.turn():
            waiting = asyncio.create_task(backend._claim(support.spec("sb-a")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (await backend.claim(support.spec("sb-b"))).start.kind == "cold"
