"""API keys: what is stored of them, and how soon they end."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import sqlalchemy

from llmsafespace_gateway.access import Access, Principal, local_principal
from llmsafespace_gateway.access.accounts import ensure_user, issue_key
from llmsafespace_gateway.access.authentication import FRESH
from llmsafespace_gateway.access.key_format import bearer, key_hash, matches, new_key, parse_key
from llmsafespace_gateway.access.principal import SCOPES
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, keys, users
from llmsafespace_gateway.store.rows import SandboxRow
from tests.services import people_of, rest


@pytest.fixture
async def access(store: Store) -> AsyncIterator[Access]:
    """A started access control."""
    made = Access(store)
    await made.start()
    yield made
    await made.stop()


async def issue(store: Store, role: str = "developer", expires_at: float | None = None) -> tuple[str, str]:
    user = await ensure_user(store, "default", f"a {role}", role)
    row, text = await issue_key(store, user, "", None, expires_at)
    return row.id, text


async def refusal(access: Access, key: str | None, token: str | None = None) -> str:
    with pytest.raises(ApiError) as refused:
        await access.authenticate(None if key is None else f"Bearer {key}", token, "10.0.0.1")
    return refused.value.code


async def until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def test_keys_are_long_random_and_found_again() -> None:
    key_id, text, hashed = new_key()
    assert parse_key(text) == (key_id, text.split("_")[2])
    assert len(bytes.fromhex(text.split("_")[2])) == 32
    assert hashed == key_hash(*parse_key(text) or ("", ""))
    assert text.split("_")[2] not in hashed
    assert len({new_key()[1] for _ in range(100)}) == 100
    for wrong in ("", "lsp_", "lsp_x_y", text.upper(), text + "0", f" {text}", text + "\n", text[:-1]):
        assert parse_key(wrong) is None


def test_hashes_are_compared_in_constant_time_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(first: bytes, second: bytes) -> bool:
        seen.append((first, second))
        return real(first, second)

    monkeypatch.setattr("llmsafespace_gateway.access.key_format.hmac.compare_digest", watched)
    hashed = new_key()[2]
    assert matches(hashed, hashed)
    assert not matches(hashed, "1" * 64)
    assert not matches(None, hashed)
    assert not matches(None, "0" * 64)
    assert [len(first) for first, _ in seen] == [64, 64, 64, 64]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("token abc", "abc"),
        ("Token abc", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_authorization_headers(header: str | None, value: str | None) -> None:
    assert bearer(header) == value


async def test_a_key_is_its_users_principal(access: Access, store: Store) -> None:
    key_id, text = await issue(store)
    found = await access.authenticate(f"token {text}")
    assert (found.user, found.tenant, found.role, found.key_id) == (
        "a developer",
        "default",
        "developer",
        key_id,
    )
    assert found.scopes == SCOPES - {"admin"}
    assert await access.authenticate(None, text) == found
    await access.stop()
    used = await keys.get(store, found.user_id, key_id)
    assert used is not None
    assert used.last_used_at is not None


async def test_what_is_no_key_is_unauthorized(access: Access, store: Store) -> None:
    key_id, text = await issue(store)
    await access.authenticate(f"Bearer {text}")
    wrong_secret = f"lsp_{key_id}_{'0' * 64}"
    unknown_id = f"lsp_{'0' * 16}_{text.split('_')[2]}"
    for key in (wrong_secret, unknown_id, "nonsense", "lsp_é_é", None):
        assert await refusal(access, key) == "unauthorized"
    assert await refusal(access, None, "nonsense") == "unauthorized"
    with pytest.raises(ApiError, match="API key"):
        await access.authenticate(f"Basic {text}")


async def test_unknown_and_wrong_keys_take_the_same_way(
    access: Access, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, text = await issue(store)
    await access.authenticate(f"Bearer {text}")  # in memory now: a wrong secret must not tell
    steps: list[str] = []
    real = keys.known

    async def looked_up(of: Store, name: str) -> keys.KnownKey | None:
        steps.append("query")
        return await real(of, name)

    def compared(stored: str | None, presented: str) -> bool:
        steps.append("compare")
        return matches(stored, presented)

    monkeypatch.setattr(keys, "known", looked_up)
    monkeypatch.setattr("llmsafespace_gateway.access.authentication.matches", compared)
    for key in (f"lsp_{key_id}_{'0' * 64}", f"lsp_{'0' * 16}_{'0' * 64}"):
        assert await refusal(access, key) == "unauthorized"
    assert steps == ["query", "compare"] * 2
    await access.authenticate(f"Bearer {text}")
    assert steps == ["query", "compare"] * 2


async def test_bad_keys_exhaust_an_address_but_good_ones_pass(access: Access, store: Store) -> None:
    _, text = await issue(store)
    codes = [await refusal(access, "nonsense") for _ in range(40)]
    assert codes[0] == "unauthorized"
    assert codes[-1] == "rate_limited"
    await access.authenticate(f"Bearer {text}", None, "10.0.0.1")


async def test_a_revocation_by_another_process_is_noticed(
    access: Access, store: Store, store_url: str
) -> None:
    key_id, text = await issue(store)
    found = await access.authenticate(f"Bearer {text}")
    closed: list[str] = []
    access.on_revoked(key_id, lambda: closed.append("socket"))
    unsubscribe = access.on_revoked(key_id, lambda: closed.append("never"))
    unsubscribe()
    other = await Store.open(store_url)
    await keys.revoke(other, found.user_id, key_id, time.time())
    await other.close()
    await until(lambda: closed == ["socket"])
    assert await refusal(access, text) == "unauthorized"
    access.on_revoked(key_id, lambda: closed.append("late"))
    await until(lambda: closed == ["socket", "late"])


async def test_a_key_expires_by_itself(access: Access, store: Store) -> None:
    soon = time.time() + 0.7
    key_id, text = await issue(store, expires_at=soon)
    await access.authenticate(f"Bearer {text}")
    closed: list[float] = []
    access.on_revoked(key_id, lambda: closed.append(time.time()))
    await until(lambda: bool(closed))
    assert closed[0] >= soon
    assert await refusal(access, text) == "unauthorized"
    access.on_revoked(key_id, lambda: closed.append(time.time()))
    await until(lambda: len(closed) == 2)


async def test_a_lowered_role_lowers_the_key(
    access: Access, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = people_of(access, store)
    _, text = await issue(store, "admin")
    before = await access.authenticate(f"Bearer {text}")
    await service.create_user(rest(before), "another", "admin")
    closed: list[str] = []
    access.on_revoked(before.key_id, lambda: closed.append("socket"))
    await service.set_role(rest(before), before.user_id, "viewer")
    assert closed == ["socket"]
    after = await access.authenticate(f"Bearer {text}")
    assert (after.role, after.is_admin) == ("viewer", False)
    await users.set_role(store, before.tenant, before.user_id, "developer")  # as another process would
    monkeypatch.setattr("llmsafespace_gateway.access.authentication.FRESH", FRESH * 0)
    assert (await access.authenticate(f"Bearer {text}")).role == "developer"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET role = 'viewer'",
        "UPDATE api_keys SET scopes = '[\"sandboxes:read\"]'",
        "DELETE FROM api_keys",
        "UPDATE users SET tenant = 'other'",
    ],
    ids=["role", "scopes", "key and user removed", "tenant"],
)
async def test_a_right_that_another_process_took_closes_what_is_open(
    access: Access, store: Store, store_url: str, make_sandbox: Callable[..., SandboxRow], change: str
) -> None:
    """And the next request is answered with what the key may do now, not with what it could."""
    _, text = await issue(store)
    before = await access.authenticate(f"Bearer {text}")
    closed: list[str] = []
    access.watch(before, make_sandbox(owner=before.user_id), "owner", lambda: closed.append("socket"))
    await access._authenticator.poll()
    assert closed == []
    other = await Store.open(store_url)
    await users.ensure_tenant(other, "other")
    async with other.write() as connection:
        await connection.execute(sqlalchemy.text(change))
    await other.close()
    await access._authenticator.poll()
    assert closed == ["socket"]
    after: Principal | None = None
    with contextlib.suppress(ApiError):  # unauthorized, where the key is gone
        after = await access.authenticate(f"Bearer {text}")
    assert after != before


async def test_requests_without_a_key_are_anonymous_only_where_allowed(store: Store) -> None:
    local = local_principal()
    access = Access(store, anonymous=local)
    assert await access.authenticate(None) is local
    assert access.rate_limit(local) == {}
    assert await refusal(access, "nonsense") == "unauthorized"
    assert await refusal(access, None, "nonsense") == "unauthorized"
    assert await refusal(Access(store), None) == "unauthorized"


async def test_the_anonymous_user_is_a_user(store: Store) -> None:
    access = Access(store, anonymous=local_principal())
    service = people_of(access, store)
    assert await access.first_run() is None
    for _ in range(2):
        await access.start()
        await access.stop()
    local = await access.authenticate(None)
    row, text = await service.create_key(rest(local))
    assert (await access.authenticate(f"Bearer {text}")).user == "local"
    assert await service.list_keys(rest(local)) == [row]


async def test_the_first_run_makes_one_admin_key(store: Store) -> None:
    access = Access(store)
    text = await access.first_run()
    assert text is not None
    assert await access.first_run() is None
    admin = await access.authenticate(f"Bearer {text}")
    assert (admin.user, admin.tenant, admin.is_admin) == ("admin", "default", True)


async def test_processes_that_are_given_the_first_key_end_with_that_key(store_url: str) -> None:
    given = new_key()[1]
    stores = [await Store.open(store_url) for _ in range(3)]
    told = await asyncio.gather(*(Access(each).first_run(given) for each in stores))
    assert told == [None] * 3
    for each in stores:
        admin = await Access(each).authenticate(f"Bearer {given}")
        assert (admin.user, admin.is_admin) == ("admin", True)
    assert len(await keys.everything(stores[0])) == 1
    assert await Access(stores[0]).first_run(new_key()[1]) is None
    assert len(await keys.everything(stores[0])) == 1
    for each in stores:
        await each.close()


async def test_a_first_key_that_is_none_is_refused_without_being_told(store: Store) -> None:
    with pytest.raises(ApiError, match="the first key is none") as told:
        await Access(store).first_run("lsp_secret")
    assert "secret" not in told.value.message


async def test_secrets_are_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.DEBUG)
    try:
        store = await Store.open(f"sqlite:///{tmp_path / 'db.sqlite'}")
        access = Access(store)
        service = people_of(access, store)
        text = await access.first_run() or ""
        admin = await access.authenticate(f"Bearer {text}")
        row, other = await service.create_key(rest(admin))
        access.audit(admin, "test", other, "ok", note=f"see {text}", env={"A": "private"}, list=[other])
        await refusal(access, f"lsp_{row.id}_{'ab' * 32}")
        await service.revoke_key(rest(admin), row.id)
        await access.stop()
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    await store.close()
    files += (tmp_path / "db.sqlite").read_bytes()
    for secret in (text.split("_")[2], other.split("_")[2], "ab" * 32, "private"):
        assert secret.encode() not in files
        assert secret not in caplog.text
    assert row.id.encode() in files


async def test_a_store_that_does_not_answer_trusts_no_key(
    access: Access, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    async def broken(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    _, text = await issue(store)
    await access.authenticate(f"Bearer {text}")
    monkeypatch.setattr(keys, "revoked_since", broken)
    monkeypatch.setattr(keys, "known", broken)
    deadline = time.monotonic() + 20
    code = ""
    while code != "service_unavailable":
        assert time.monotonic() < deadline
        try:
            await access.authenticate(f"Bearer {text}")
        except ApiError as error:
            code = error.code
        await asyncio.sleep(0.02)


def test_the_local_principal_is_one_of_the_default_tenant() -> None:
    assert local_principal() == Principal("local", "local", "default", "admin", "", SCOPES)
