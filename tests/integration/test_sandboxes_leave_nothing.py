"""Real sandboxes, a real store: what fails before the row leaves nothing, and nothing stops a start."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from llmsafespace_gateway.backends.base import EgressRule, Resources
from llmsafespace_gateway.backends.local import limits, records
from llmsafespace_gateway.egress.proxy import EgressProxy
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, sandboxes, sqlite_url, users
from llmsafespace_gateway.store.rows import UserRow
from tests.integration import local_support as support
from tests.integration.sandboxes_support import ADA, RULES, House, wanted


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with support.data_folder() as folder:
        yield House(folder)


# -- between claim and row -----------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch, House], None]


def fails(target: Any, name: str, error: Exception) -> Break:
    """A step that raises `error` instead of doing its work."""

    def broken(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
        of = target(house) if callable(target) and not isinstance(target, type) else target

        def step(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(of, name, step)

    return broken


def fails_async(target: Any, name: str, error: Exception) -> Break:
    """The same for a step that is awaited, after a moment."""

    def broken(monkeypatch: pytest.MonkeyPatch, house: House) -> None:
        of = target(house) if callable(target) and not isinstance(target, type) else target

        async def step(*_: Any, **__: Any) -> Any:
            await asyncio.sleep(0)
            raise error

        monkeypatch.setattr(of, name, step)

    return broken


FULL = OSError(28, "No space left on device")
LOCKED = OperationalError("INSERT", {}, Exception("database is locked"))
STEPS: dict[str, tuple[Break | None, dict[str, Any]]] = {
    "claim is written": (fails(records, "write", FULL), {}),
    "egress is registered": (fails_async(lambda house: house.egress, "open", ValueError("127.1")), {}),
    "egress has no descriptor": (fails_async(lambda house: house.egress, "open", OSError(24, "EMFILE")), {}),
    "processor share": (fails(limits, "settle_cpu", PermissionError(1, "no")), {}),
    "record": (fails_async(lambda house: house.backend, "record", ApiError("conflict", "no")), {}),
    "insert": (fails_async(sandboxes, "insert", LOCKED), {}),
    "stored": (fails_async(lambda house: house.backend, "stored", RuntimeError("no")), {}),
    "bind refused": (None, {"cwd": "/refuse"}),
    "agent dies": (None, {"cwd": "/die"}),
    "files": (None, {"files": {"/workspace/a": b"1"}}),
    "packages": (None, {"packages": ("numpy",)}),
}


WARM = ("claim is written", "egress is registered", "insert")


@pytest.mark.parametrize(
    ("step", "pools"),
    [*((step, ()) for step in STEPS), *((step, ("warm",)) for step in WARM)],
    ids=[*STEPS, *(f"{step}, warm" for step in WARM)],
)
async def test_what_fails_before_the_row_leaves_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str, pools: tuple[str, ...]
) -> None:
    break_, more = STEPS[step]
    async with house.open(pools=[support.pool(name) for name in pools]):
        for name in pools:
            await support.available(house.backend, name, 1)
        before = house.folders()
        with monkeypatch.context() as patched:
            if break_ is not None:
                break_(patched, house)
            with pytest.raises((ApiError, OSError, ValueError, OperationalError, RuntimeError)):
                await house.sandboxes.create(ADA, wanted(**more))
            await nothing_is_left(house, before)
        for name in pools:
            await support.available(house.backend, name, 1)
        row = await house.sandboxes.create(ADA, wanted())
        assert row.state == "running"
        await house.clear()


async def nothing_is_left(house: House, before: list[str]) -> None:
    assert await house.backend.living() == []
    assert house.sandboxes._making == set()
    assert house.egress._gates == {}
    assert await sandboxes.running(house.store) == []

    def gone() -> bool:  # a pool may have begun to start another
        names = {entry.state.name for entry in house.backend._registry.entries.values()}
        left = [path for path in (house.folder / "ended").iterdir() if path.name.split(".")[0] not in names]
        return not left and set(house.folders()) <= names and not set(before) & set(house.folders()) - names

    await support.eventually(gone)
    for entry in house.backend._registry.entries.values():
        assert entry.claimed is None


@pytest.mark.parametrize("pools", [(), ("warm",)], ids=["cold", "warm"])
@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_a_cancelled_create_leaves_nothing(house: House, pools: tuple[str, ...], pause: float) -> None:
    async with house.open(pools=[support.pool(name) for name in pools]):
        for name in pools:
            await support.available(house.backend, name, 1)
        making = asyncio.create_task(house.sandboxes.create(ADA, wanted(cwd="/wait")))
        await asyncio.sleep(pause)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await asyncio.gather(*house.sandboxes._undoing)
        await nothing_is_left(house, [])


async def test_a_bad_rule_is_refused_by_every_layer(house: House) -> None:
    async with house.open():
        for domain in ("127.1", "*.com", "0x7f.1", "2130706433"):
            bad = (EgressRule(domain),)
            with pytest.raises(ApiError) as caught:
                await house.sandboxes.create(ADA, wanted(egress=bad))
            assert caught.value.code == "invalid_request"
            assert domain in caught.value.message
            with pytest.raises(ApiError) as below:
                await house.backend.claim(support.spec("sb-x", egress=bad))
            assert below.value.code == "invalid_request"
        assert house.folders() == []


# -- a start with broken records -----------------------------------------------------------------------


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def broken(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return broken


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def becomes_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new))

    return change


BROKEN = {
    "state empty": overwrite("state.json", b""),
    "state zeroed": overwrite("state.json", bytes(300)),
    "state is another kind": overwrite("state.json", b"[1]"),
    "state missing": remove("state.json"),
    "state is a folder": becomes_folder("state.json"),
    "state not text": overwrite("state.json", b'{"name": "\xff'),
    "state without token": replaced("state.json", b'"token":"', b'"token":"x'),
    "claim empty": overwrite("claim.json", b""),
    "claim not text": overwrite("claim.json", b"\xff\xfe"),
    "claim of another kind": overwrite("claim.json", b'{"sandbox_id": 5}'),
    "claim nested deeply": overwrite("claim.json", b"[" * 100_000),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_record_is_quarantined_and_the_rest_is_served(
    house: House, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.open():
        good = await house.sandboxes.create(ADA, wanted())
        bad = await house.sandboxes.create(ADA, wanted())
        name = support.entry_of(house.backend, bad.id).state.name
    BROKEN[how](house.folder / "sandboxes" / name)
    async with house.open():
        (told,) = await house.backend.quarantined()
        assert (told.name, told.kept) == (name, False)
        assert name in caplog.text
        assert await support.run(house.backend, good.id, "print(1)") == "1"
        ended = await house.row(bad.id)
        assert (ended.state, ended.end) == ("ended", "lost")
        assert (await house.row(good.id)).state == "running"
        assert (house.folder / "quarantine" / name / "reason").read_text()
        await house.clear()
        assert house.folders() == []


async def test_rules_that_are_refused_now_keep_a_sandbox_in_and_no_start_back(house: House) -> None:
    """As a gateway of an earlier release left them: the sandbox is served without its way out."""
    async with house.open():
        row = await house.sandboxes.create(ADA, wanted())
        folder = support.entry_of(house.backend, row.id).folder
    replaced("claim.json", b"example.org", b"127.1")(folder)
    async with house.open():
        (told,) = await house.backend.quarantined()
        assert (told.kept, told.sandbox_id, told.tenant) == (True, row.id, "default")
        assert "127.1" in told.reason
        assert await support.run(house.backend, row.id, "print(2)") == "2"
        assert house.egress._gates == {}
        await house.clear()
        assert await house.backend.quarantined() == []


async def test_a_way_out_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house.open():
        row = await house.sandboxes.create(ADA, wanted())
    with monkeypatch.context() as patched:
        fails_async(EgressProxy, "open", OSError(24, "Too many open files"))(patched, house)
        opened = house.open()
        await opened.__aenter__()
    assert len(await house.backend.quarantined()) == 1
    await house.backend._registry.tidy()
    assert await house.backend.quarantined() == []
    assert set(house.egress._gates) == {row.id}
    await house.clear()
    await opened.__aexit__(None, None, None)


async def test_what_is_no_sandbox_is_left_alone(house: House, tmp_path: Path) -> None:
    """A file, a folder and a link to somewhere else beside the sandboxes: named, not touched."""
    (tmp_path / "precious").write_text("mine")
    async with house.open():
        pass
    beside = house.folder / "sandboxes"
    (beside / "notes.txt").write_text("x")
    (beside / "backup").mkdir()
    (beside / "0123456789abcdef").symlink_to(tmp_path)
    async with house.open():
        assert {each.name for each in await house.backend.quarantined()} == {
            "notes.txt",
            "backup",
            "0123456789abcdef",
        }
        row = await house.sandboxes.create(ADA, wanted())
        assert row.state == "running"
        await house.clear()
    assert (tmp_path / "precious").read_text() == "mine"
    (beside / "notes.txt").unlink()
    (beside / "backup").rmdir()
    (beside / "0123456789abcdef").unlink()


async def test_broken_records_of_ends_stop_no_start(house: House) -> None:
    async with house.open():
        row = await house.sandboxes.create(ADA, wanted())
        entry = support.entry_of(house.backend, row.id)
        await house.sandboxes.stop()  # nobody hears of the end
        await house.backend.destroy(row.id, "terminated")
    for index, content in enumerate((b"", b"\xff", b"[]", b'{"sandbox_id": []}')):
        (house.folder / "ended" / f"{index:016x}.json").write_bytes(content)
    (house.folder / "ended" / "folder.json").mkdir()
    (house.folder / "ended" / f"{entry.state.name}.json").write_bytes(b"{")
    async with house.open():
        assert (await house.row(row.id)).end == "lost"
    (house.folder / "ended" / "folder.json").rmdir()


# -- records and sandboxes, both ways ------------------------------------------------------------------


async def test_a_sandbox_whose_maker_died_before_its_row_is_ended(house: House) -> None:
    async with house.open():
        await house.backend.claim(support.spec("sb-a", egress=RULES))
    async with house.open():
        assert await house.backend.living() == []
        assert house.folders() == []


@pytest.mark.parametrize("how", ["missing", "zeroed"])
async def test_living_sandboxes_are_adopted_when_the_store_is_lost(house: House, how: str) -> None:
    asked = wanted(metadata={"purpose": "test"}, timeout=7.0, idle_timeout=None, max_lifetime=5000.0)
    async with house.open():
        await users.ensure_tenant(house.store, "default")
        row = await house.sandboxes.create(ADA, asked)
    for path in house.folder.glob("db.sqlite*"):
        path.unlink() if how == "missing" else path.write_bytes(b"")
    async with house.open():
        adopted = await house.row(row.id)
        for name in ("owner", "tenant", "state", "metadata", "timeout", "idle_timeout", "max_lifetime"):
            assert getattr(adopted, name) == getattr(row, name), name
        assert (adopted.cpu, adopted.memory, adopted.storage) == (row.cpu, row.memory, row.storage)
        assert adopted.egress == [{"domain": "example.org", "ports": [443]}]
        assert adopted.requested_runtime == "probe"
        assert abs(adopted.created_at - row.created_at) < 5
        assert await support.run(house.backend, row.id, "print(3)") == "3"
        await house.sandboxes.delete(row.id)
        assert (await house.row(row.id)).end == "terminated"


async def test_an_id_is_never_taken_for_a_name_that_somebody_chose_since(house: House) -> None:
    async with house.open():
        row = await house.sandboxes.create(ADA, wanted())
    for path in house.folder.glob("db.sqlite*"):
        path.unlink()
    store = await Store.open(sqlite_url(house.folder))
    await users.ensure_tenant(store, "default")
    await users.insert(
        store, UserRow(id="u-eve", name="u-ada", tenant="default", role="developer", created_at=1.0)
    )
    await store.close()
    async with house.open():
        assert (await house.row(row.id)).owner == "u-ada"
        await house.clear()


async def test_both_ways_while_running(house: House) -> None:
    async with house.open():
        ended = await house.sandboxes.create(ADA, wanted())
        forgotten = await house.sandboxes.create(ADA, wanted())
        kept = await house.sandboxes.create(ADA, wanted())
        ghost = await house.sandboxes.create(ADA, wanted())
        await house.sandboxes.delete(ghost.id)
        await sandboxes.update(
            house.store, "default", ghost.id, state="running", end=None, ended_at=None, created_at=1.0
        )
        await sandboxes.end(house.store, ended.id, "expired", None, 1.0)
        async with house.store.write() as connection:
            from sqlalchemy import text

            await connection.execute(text("DELETE FROM sandboxes WHERE id = :id"), {"id": forgotten.id})
        house.sandboxes._ends._written._ids.clear()
        await house.sandboxes._reconciliation.once()
        assert {place.sandbox_id for place in await house.backend.living()} == {forgotten.id, kept.id}
        assert (await house.row(forgotten.id)).state == "running"
        assert (await house.row(ghost.id)).state == "ended"
        assert (await house.row(ended.id)).end == "expired"
        await house.clear()


async def test_reconciliation_leaves_alone_what_is_being_made(house: House) -> None:
    async with house.open():
        making = asyncio.create_task(house.sandboxes.create(ADA, wanted(cwd="/wait")))

        async def claimed() -> bool:
            return len(await house.backend.living()) == 1

        await support.eventually(claimed)
        await house.sandboxes._reconciliation.once()
        assert len(await house.backend.living()) == 1
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        await asyncio.gather(*house.sandboxes._undoing)
        assert await house.backend.living() == []


async def test_a_folder_that_nobody_accounts_for_is_swept_while_running(house: House) -> None:
    async with house.open():
        left = house.folder / "sandboxes" / "00112233445566aa"
        (left / "egress").mkdir(parents=True)
        os.utime(left, (1.0, 1.0))
        fresh = house.folder / "sandboxes" / "00112233445566bb"
        fresh.mkdir()
        await house.backend._registry.tidy()
        assert house.folders() == [fresh.name]
        fresh.rmdir()


async def test_a_data_dir_that_was_emptied_ends_its_sandboxes(house: House) -> None:
    async with house.open():
        row = await house.sandboxes.create(ADA, wanted())
        entry = support.entry_of(house.backend, row.id)
        for name in ("lock", "first", "state.json", "claim.json", "bound.json"):
            (entry.folder / name).unlink()

        async def ended() -> bool:
            state: str = (await house.row(row.id)).state
            return state == "ended"

        await support.eventually(ended)
        assert await house.backend.living() == []


async def test_a_small_share_is_kept_from_the_first_row_on(house: House) -> None:
    """The bind is ours; afterwards no code has more than its owner asked for, after a restart neither."""
    tiny = Resources(cpu=0.01, memory=128 * support.MIB, storage=64 * support.MIB)
    async with house.open():
        folders = house.backend._host.hierarchy.folders
        if "cpu" not in folders:
            pytest.skip("no cpu cgroup here")
        row = await house.sandboxes.create(ADA, wanted(resources=tiny))
        name = support.entry_of(house.backend, row.id).state.name
        version = house.backend._host.hierarchy.version
        control = Path(folders["cpu"]) / f"llmsafespace-{name}"
        control /= "cpu.max" if version == 2 else "cpu.cfs_quota_us"
        assert control.read_text().split()[0] == "1000"
        control.write_text("200000")
    async with house.open():
        assert control.read_text().split()[0] == "1000"
        await house.clear()
